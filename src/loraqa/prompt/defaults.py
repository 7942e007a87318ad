"""Default lengths and numbers of windows and answers, the same in training and in answering."""

DEFAULT_STRIDE = 128
"""Tokens that two windows on a long context share; 128 as in BERT's SQuAD code."""

DEFAULT_WINDOWS = 5
"""How many windows of a long text are read for a question. On a whole article of SQuAD, BM25 finds
the paragraph of a question among its first 5 in 94 of 100 cases. Ten have it in 97, but take
twice as long to read.
"""

DEFAULT_MAX_ANSWER_TOKENS = 32
"""The longest answer in tokens, its end included; all but 5 in 1,000 of SQuAD's fit.

Training raises it for data with longer answers.
"""

ANSWERS_THAT_FIT = 0.995
"""The share of the training answers that fit into the longest answer by default."""
