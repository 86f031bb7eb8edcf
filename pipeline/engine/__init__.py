"""Faust made to tell the truth: chunks, fenced checkpoints, restore; all private names of Faust."""
