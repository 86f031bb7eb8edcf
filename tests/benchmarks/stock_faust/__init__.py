"""The baseline: the same work on Faust as it comes, for `python -m tests.chaos --worker stock`."""
