"""What a study will cost, before it starts: tokens, arithmetic, time, memory and disk, without loading a model."""
