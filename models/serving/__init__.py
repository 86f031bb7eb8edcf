"""Serving: what training does, by steps: a state moves on by one item, the best are found.

`model` is what workers use. Beneath it, one file per form, the plain one first:

- `folded`: weights as serving reads them;
- `top_k`: the best items, exactly, by blocks of the catalogue, in torch;
- `top_k_rounded`: the same from bounds of all scores, where those are cheaper;
- `native`, `native_step`, `native_top_k`: step and best items in C++ (`native.cpp`), for the CPU;
- `graphs`: the whole step as a CUDA graph.
"""
