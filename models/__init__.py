"""LRURec in tensors: recurrence, model, training, serving, releases. Knows no stream, no store.

Import names from their modules: nothing is gathered here, so that configuration, errors and
vocabulary can be had without loading torch.
"""
