"""Sources, forms, prompts and tokens: everything about data that needs no torch."""
