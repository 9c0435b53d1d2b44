"""The analysis stage: what changed inside."""
