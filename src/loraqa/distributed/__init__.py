"""Training in several processes, on one machine or on several. `torchrun` starts them."""
