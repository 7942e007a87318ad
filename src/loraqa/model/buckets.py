"""Rows of few lengths, for what is recorded anew for each.

A row is filled up to the next of these lengths with tokens that nobody sees.
"""

from dataclasses import replace

from torch.nn.functional import pad

from loraqa.prompt.batch import TreeBatch

# Of so many tokens, and wanted ones, some more take a GPU hardly more time.
_SHORTEST_ROW, _FEWEST_WANTED = 256, 256


def fill_bucket(batch: TreeBatch) -> TreeBatch:
    """Add padding behind the trees, and to the supervised tokens, where no target belongs to it.

    The last token of the row is always padding, and pads the supervised ones: repeated, a real one
    would get the gradient of each copy.
    """
    tokens, wanted = batch.input_ids.shape[1], len(batch.supervised)
    row = padded_row(tokens)
    behind = (0, row - tokens)
    return replace(
        batch,
        input_ids=pad(batch.input_ids, behind),
        position_ids=pad(batch.position_ids, behind),
        supervised=pad(
            batch.supervised, (0, bucket(wanted, _FEWEST_WANTED) - wanted), value=row - 1
        ),
    )


def padded_row(tokens: int) -> int:
    """How long a row of so many tokens becomes."""
    return bucket(tokens + 1, _SHORTEST_ROW)


def bucket(count: int, smallest: int) -> int:
    """`count` rounded up to steps that grow with it: powers of two, at least `smallest`.

    The padding is less than one step, which is `smallest` or at most an eighth of `count`; and
    from a number to its double there are eight steps or fewer.
    """
    step = max(smallest, 1 << max(count.bit_length() - 4, 0))
    return -(-count // step) * step
