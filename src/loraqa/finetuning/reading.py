"""How the model that is trained reads and answers: as its training data need it."""

import math

from loraqa.answer.span import SpanSearch
from loraqa.model.runner import Runner
from loraqa.prompt.defaults import ANSWERS_THAT_FIT, DEFAULT_MAX_ANSWER_TOKENS
from loraqa.prompt.encode import Encoded
from loraqa.prompt.template import Template
from loraqa.reader import Reader
from loraqa.train.data import TrainingData
from loraqa.train.settings import RunSettings

SCORING = SpanSearch(most_paths=32)
"""How answers are found that are scored during a training.

A fine-tuned model needs about five paths for a question, and hardly ever more than 32. A model that
has learned nothing needs hundreds, and its score is not worth so much.
"""

EVEN = 0.5
"""The threshold on the probability of "no answer" until a better one is found."""

SCORING_BATCH_FACTOR = 4
"""Scoring keeps only keys and values, so its batches can be so much larger than in training."""

# Tokens that a prompt may have whatever the training data were, if the base takes as many. Longer
# texts are read in windows that are as long as nearly all contexts of the training.
_ANY_LENGTH = 512
_USUAL = 0.95


def reader_of(
    settings: RunSettings, runner: Runner, max_length: int, training: TrainingData
) -> Reader:
    """Return a reader that writes prompts as in training."""
    encoded, template = training.encoded, Template(settings.prompt.template)
    longest = settings.evaluation.max_answer_tokens or longest_answer(encoded, max_length)
    return Reader(
        runner,
        training.tokenizer,
        template,
        min(max_length, _longest_path(encoded) + longest),
        settings.prompt.stride,
        usual_context(encoded, template),
        max_answer_tokens=longest,
        learned_no_answer=_learns_no_answer(encoded),
        no_answer_threshold=EVEN if training.facts["unanswerable"] else None,
        tokens_per_batch=SCORING_BATCH_FACTOR * settings.optimisation.tokens_per_batch,
    )


def _longest_path(encoded: Encoded) -> int:
    """Return how long the longest prompt with its answer is, but at least 512 tokens.

    The caller cuts it to the base's limit.
    """
    paths = (len(tree.trunk) + max(map(len, tree.branches)) for tree in encoded.trees)
    return max(*paths, _ANY_LENGTH)


def usual_context(encoded: Encoded, template: Template) -> int:
    """Return a length that few of the contexts exceed."""
    copies = 1 if template.between_contexts is None else 2
    lengths = sorted(len(tree.trunk) // copies for tree in encoded.trees)
    return max(lengths[math.ceil(_USUAL * len(lengths)) - 1], _ANY_LENGTH // 2)


def _learns_no_answer(encoded: Encoded) -> bool:
    # "No answer" is one token.
    return any(len(branch.answer) == 1 for tree in encoded.trees for branch in tree.branches)


def longest_answer(encoded: Encoded, max_length: int) -> int:
    """Return how many tokens an answer may have by default, its end included.

    With an English tokenizer a Chinese or Thai character takes two or three tokens. Answers never
    take more than a quarter of the longest path, so that contexts have room.
    """
    answers = (branch.answer for tree in encoded.trees for branch in tree.branches)
    # "No answer" is one token.
    lengths = sorted(len(answer) for answer in answers if len(answer) > 1) or [1]
    needed = lengths[math.ceil(ANSWERS_THAT_FIT * len(lengths)) - 1]
    return max(DEFAULT_MAX_ANSWER_TOKENS, min(needed, max_length // 4))
