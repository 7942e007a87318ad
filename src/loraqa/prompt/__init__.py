"""Turn passages into the model's input: text, tokens, trees, and batches."""
