"""Bundled real data (Online Retail, CC0) and the lock of the local Kafka."""
