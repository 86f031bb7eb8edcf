"""The worker: micro-batches, ranking, hot rows, hot swap."""
