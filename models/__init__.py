"""LRURec in tensors: recurrence, model, training, serving, releases. Knows no stream, no store."""
