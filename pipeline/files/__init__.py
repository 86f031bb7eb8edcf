"""Reading data files: interactions, and what is known of items."""
