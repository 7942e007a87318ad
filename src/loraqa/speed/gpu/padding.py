"""Pad packed sequences to a few lengths, because each length needs its own CUDA graph.

No token attends to the padding.
"""

from dataclasses import replace

from torch.nn.functional import pad

from loraqa.prompt.batch import TreeBatch

# Below these numbers of tokens, and of supervised places, a GPU takes almost the same time.
_SHORTEST_SEQUENCE, _FEWEST_SUPERVISED = 256, 256


def pad_batch(batch: TreeBatch) -> TreeBatch:
    """Pad the tokens behind the trees, and the supervised places; no target belongs to padding.

    The last token of the sequence is always padding, and pads the supervised places: at a real
    token they would add to its gradient.
    """
    tokens, supervised = batch.input_ids.shape[1], len(batch.supervised)
    length = padded_length(tokens)
    behind = (0, length - tokens)
    missing = round_up(supervised, _FEWEST_SUPERVISED) - supervised
    return replace(
        batch,
        input_ids=pad(batch.input_ids, behind),
        position_ids=pad(batch.position_ids, behind),
        supervised=pad(batch.supervised, (0, missing), value=length - 1),
        in_branch=pad(batch.in_branch, behind),
    )


def padded_length(tokens: int) -> int:
    """Return the length of a sequence of so many tokens once it is padded."""
    return round_up(tokens + 1, _SHORTEST_SEQUENCE)


def round_up(count: int, smallest: int) -> int:
    """Round `count` up to a multiple of a step that grows with it.

    The step is a power of two or `smallest`. It is at most an eighth of `count`, or `smallest`; and
    there are at most eight steps from a number to its double.
    """
    step = max(smallest, 1 << max(count.bit_length() - 4, 0))
    return -(-count // step) * step
