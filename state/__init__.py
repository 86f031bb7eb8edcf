"""The state row of a user and the stores that keep it. Knows no tensor and no stream."""
