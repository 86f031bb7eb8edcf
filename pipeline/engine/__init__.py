"""Faust made to tell the truth: chunked transport, fenced checkpoints, restore. All private names of Faust live here."""
