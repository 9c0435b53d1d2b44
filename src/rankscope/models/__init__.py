"""Loading bases, making them trainable, reading the result back: the one branch on the method."""
