"""Trying settings: many trainings, of which the best is kept, and a short search for one rate."""
