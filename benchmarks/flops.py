"""The floating-point operations that an optimizer step of LoRA on GPT-2 needs, by formula.

A multiplication and an addition are two operations. With T tokens, S of them supervised, width d,
vocabulary V, and P (query, key) pairs that attention has to compute:

- A matrix (in, out) of a block takes 2·T·in·out forward, and as much backward for the gradient of
  its input. It is frozen, so it has no gradient of its own.
- Attention takes 4·d·P forward (QKᵀ and AV), and twice that backward.
- LoRA of rank r on a matrix takes 2·T·r·(in + out) forward and twice that backward: A and B each
  need a gradient, and so do their inputs.
- The head takes 2·S·d·V forward and as much backward.
- The input of the first adapter, in the first block's `c_attn`, needs no gradient, because nothing
  below it is trained.
- After the keys and values of the last block only supervised positions matter: its attention has
  S queries, and `attn.c_proj` and the MLP have S rows.

Not counted are embeddings, norms, GELU, softmax and the optimizer, nor what a program computes
beyond need: padding, repeated contexts, masked pairs, and scores recomputed in backward.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraqa.prompt.tree import Tree

Matrices = Mapping[str, tuple[int, int]]
"""The matrices of a transformer block: name to (in, out)."""


@dataclass(frozen=True)
class Work:
    """The size of an optimizer step.

    Attributes:
        tokens: T.
        supervised: S.
        pairs: P over all queries.
        supervised_pairs: P over the supervised queries only.
    """

    tokens: int
    supervised: int
    pairs: int
    supervised_pairs: int


def tree_work(trees: Sequence[Tree]) -> Work:
    """Return the work of trees, whose trunks are computed once."""
    return Work(
        tokens=sum(map(len, trees)),
        supervised=sum(len(branch.answer) for tree in trees for branch in tree.branches),
        pairs=sum(map(_pairs, trees)),
        supervised_pairs=sum(map(_supervised_pairs, trees)),
    )


def matrices(config: Any) -> Matrices:
    """Return the matrices of a block of GPT-2."""
    width = config.n_embd
    inner = config.n_inner or 4 * width
    return {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, inner),
        "mlp.c_proj": (inner, width),
    }


def training_flops(config: Any, rank: int, adapted: Sequence[str], work: Work) -> int:
    """Return the operations of forward and backward.

    Args:
        config: GPT-2's configuration.
        rank: r of every adapter.
        adapted: names from `matrices`, including `attn.c_attn`.
        work: the size of the step.
    """
    head = 2 * 2 * work.supervised * config.n_embd * config.vocab_size
    blocks = sum(
        _block(config, rank, adapted, work, first=block == 0, last=block == config.n_layer - 1)
        for block in range(config.n_layer)
    )
    return int(head) + blocks


def _block(
    config: Any, rank: int, adapted: Sequence[str], work: Work, *, first: bool, last: bool
) -> int:
    flops = 3 * 4 * int(config.n_embd) * (work.supervised_pairs if last else work.pairs)
    for name, (width, height) in matrices(config).items():
        below_all = first and name == "attn.c_attn"
        rows = work.supervised if last and name != "attn.c_attn" else work.tokens
        flops += 2 * rows * width * height * (1 if below_all else 2)
        if name in adapted:
            flops += 3 * 2 * rows * rank * (width + height)
            flops -= 2 * rows * rank * width if below_all else 0
    return flops


def _pairs(tree: Tree) -> int:
    """Count the pairs of every token with itself and the tokens before it on its path."""
    trunk = len(tree.trunk)
    branches = sum(trunk * len(b) + _triangle(len(b)) for b in tree.branches)
    return _triangle(trunk) + branches


def _supervised_pairs(tree: Tree) -> int:
    """Count the pairs of the last tokens of each branch, which predict the answer's tokens."""
    ends = [len(tree.trunk) + len(branch) for branch in tree.branches]
    answers = [len(branch.answer) for branch in tree.branches]
    return sum(
        _triangle(end) - _triangle(end - answer) for end, answer in zip(ends, answers, strict=True)
    )


def _triangle(side: int) -> int:
    return side * (side + 1) // 2
