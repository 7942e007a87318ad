"""From text to what the model computes: template, segments, trees, windows, batches."""
