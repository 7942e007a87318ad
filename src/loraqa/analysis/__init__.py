"""What the answers to a data set show: how well confidence fits, where errors are, what changed.

All functions are pure, and know no model.
"""
