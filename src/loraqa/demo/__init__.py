"""The embedded example: texts about a small invented world and a small model pretrained on them."""
