"""Answering the questions of a file of any size, part by part."""
