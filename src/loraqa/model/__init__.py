"""The base model: loading it, attention over trees, logits at answer positions, decoding."""
