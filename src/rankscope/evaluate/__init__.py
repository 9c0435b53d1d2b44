"""The evaluation stage: tasks to rows, one an item."""
