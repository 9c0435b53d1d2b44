"""A study in the forms that others read: tidy tables, LaTeX, figures, PEFT's result JSON, the winning model."""
