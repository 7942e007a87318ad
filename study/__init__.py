"""How good answers become on real text, and which settings make them so: `python -m study`."""
