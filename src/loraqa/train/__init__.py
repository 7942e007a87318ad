"""Training an adapter: settings, training loop, checkpoints, and the folder of a run."""
