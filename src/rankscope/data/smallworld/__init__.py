"""The small world: a fictional world with known truth, and the base model that was pretrained on it."""
