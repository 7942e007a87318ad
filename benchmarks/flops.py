"""The floating-point operations that a step of LoRA on GPT-2 or Llama needs, by formula.

A multiplication and an addition are two operations. With T tokens, S of them supervised, width d,
vocabulary V, and P (query, key) pairs that attention has to compute:

- A matrix (in, out) of a block takes 2·T·in·out forward, and as much backward for the gradient of
  its input. It is frozen, so it has no gradient of its own.
- Attention takes 4·d·P forward (QKᵀ and AV), and twice that backward.
- LoRA of rank r on a matrix takes 2·T·r·(in + out) forward and twice that backward: A and B each
  need a gradient, and so do their inputs.
- The head takes 2·S·d·V forward and as much backward.
- The input of the first block's queries, keys and values needs no gradient, because nothing below
  it is trained.
- After the keys and values of the last block only supervised positions matter: its attention has
  S queries, and all matrices but those of keys and values have S rows.

Not counted are embeddings, norms, activations, softmax and the optimizer, nor what a program
computes beyond need: padding, repeated contexts, masked pairs, and scores recomputed in backward.
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


# The matrices that read the input of a block, and those of them that make keys and values.
_FIRST = ("attn.c_attn", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_STATES = ("attn.c_attn", "self_attn.k_proj", "self_attn.v_proj")


def matrices(config: Any) -> Matrices:
    """Return the matrices of a block of GPT-2 or Llama."""
    return _llama(config) if config.model_type == "llama" else _gpt2(config)


def _gpt2(config: Any) -> Matrices:
    width = config.n_embd
    inner = config.n_inner or 4 * width
    return {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, inner),
        "mlp.c_proj": (inner, width),
    }


def _llama(config: Any) -> Matrices:
    width, inner = config.hidden_size, config.intermediate_size
    states = config.num_key_value_heads * config.head_dim
    return {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width, states),
        "self_attn.v_proj": (width, states),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (width, inner),
        "mlp.up_proj": (width, inner),
        "mlp.down_proj": (inner, width),
    }


def training_flops(config: Any, rank: int, adapted: Sequence[str], work: Work) -> int:
    """Return the operations of forward and backward.

    Args:
        config: the configuration of a GPT-2, or of a Llama whose heads together are as wide as it.
        rank: r of every adapter.
        adapted: names from `matrices`, including those of queries, keys and values.
        work: the size of the step.
    """
    head = 2 * 2 * work.supervised * config.hidden_size * config.vocab_size
    last = config.num_hidden_layers - 1
    blocks = sum(
        _block(config, rank, adapted, work, first=block == 0, last=block == last)
        for block in range(config.num_hidden_layers)
    )
    return int(head) + blocks


def _block(
    config: Any, rank: int, adapted: Sequence[str], work: Work, *, first: bool, last: bool
) -> int:
    flops = 3 * 4 * int(config.hidden_size) * (work.supervised_pairs if last else work.pairs)
    for name, (width, height) in matrices(config).items():
        below_all = first and name in _FIRST
        rows = work.supervised if last and name not in _STATES else work.tokens
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
