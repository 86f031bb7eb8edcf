"""Training of a recommender: the next item by cross-entropy, the best weights by validation.

`train` is what callers use, `result` what they get. Beneath it:

- `run`: one training while it goes on; `checkpoint`: how it goes on after an end;
- `step`: one batch, forwards and backwards;
- `loss`, `sampled_loss`: against all items, and against a sample of a large catalogue;
- `averaging`: the running average of weights;
- `allocator`: how large tensors keep their memory.
"""
