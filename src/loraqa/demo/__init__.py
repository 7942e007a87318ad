"""The embedded default: a small invented world of text and a small model pretrained on it."""
