"""What answers and adapters show: how well confidence fits, where errors are, what LoRA learned.

All functions are pure, and know no model.
"""
