"""How each method makes a base trainable, what it saves, and how that is read back."""
