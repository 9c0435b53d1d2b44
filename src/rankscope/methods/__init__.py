"""What methods there are, what each takes and what each can do; how they do it is in `models/methods`."""
