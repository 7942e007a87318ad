"""Accelerations on a CPU."""
