"""The training stage: one loop for every method."""
