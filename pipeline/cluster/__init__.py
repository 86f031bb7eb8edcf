"""Kafka itself: the local broker, its jars, topics, what clients need."""
