"""How a model's answers become numbers: likelihoods, generation, losses, answers."""
