"""One module per `lrurec` command."""
