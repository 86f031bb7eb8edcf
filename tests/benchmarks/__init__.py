"""Benchmarks: figures with the command that makes them. None of them is run by the tests."""
