"""`lrurec verify`: every promise held against the log, by an oracle beside the stream."""
