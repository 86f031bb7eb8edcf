"""`lrurec demo`: the whole loop, shown and verified."""
