"""Accelerations on a GPU."""
