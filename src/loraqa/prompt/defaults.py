"""Default lengths of windows and answers, the same in training and in answering."""

DEFAULT_STRIDE = 128
"""Tokens that two windows on a long context share; 128 as in BERT's SQuAD code."""

DEFAULT_MAX_ANSWER_TOKENS = 32
"""The longest answer in tokens, its end included; all but 3 in 1,000 of SQuAD's fit."""
