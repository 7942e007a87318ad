"""Answering questions: decoding strategies, the `Reader`, and the evaluation of a data set.

`docs/decoding.md` has the formulas, and says when to choose which strategy.
"""
