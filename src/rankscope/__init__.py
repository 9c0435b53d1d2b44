"""Full fine-tuning or LoRA, at which rank, and what will the model forget? An experiment that answers."""
