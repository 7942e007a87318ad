"""Hold questions out of a training, to learn from them how far its answers can be trusted."""

import numpy as np

from loraqa.squad.dataset import QADataset

# A tenth of the questions at most. Of fewer than this, too few would be held out or left.
_LARGEST_SHARE = 0.1
_FEWEST = 500


def hold_out(data: QADataset, count: int, seed: int) -> tuple[QADataset, QADataset]:
    """Return the questions to train on, and those that are held out.

    Passages are held out whole, until they have `count` questions or a tenth of all. Of fewer than
    500 questions none is held out.
    """
    tenth = int(_LARGEST_SHARE * len(data.order)) if len(data.order) >= _FEWEST else 0
    most = min(count, tenth)
    held: set[int] = set()
    questions = 0
    for index in np.random.default_rng(seed).permutation(len(data.passages)).tolist():
        more = len(data.passages[index].questions)
        if questions >= most:
            break
        # A passage with very many questions would leave too few to train on.
        if questions + more <= 2 * tenth:
            held.add(index)
            questions += more
    kept, out = (
        [passage for index, passage in enumerate(data.passages) if (index in held) is wanted]
        for wanted in (False, True)
    )
    return data.with_passages(kept), data.with_passages(out)
