"""Other ways to read a context than before its question, with the trunk still computed once.

A causal model reads a context without knowing the question. Each function here changes the trees,
the attention or the loss of a run, and `loraqa` trains and answers with the change.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from loraqa.lora.flat import FlatAdapter
from loraqa.model.loss import Gradients, Launch
from loraqa.model.runner import Runner, TreeRunner, tree_logits
from loraqa.model.session import DecodingSession
from loraqa.prompt.batch import TreeBatch, collate_trees
from loraqa.prompt.plan import Step
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import TokenIds, Tree
from loraqa.speed.cpu.products import Block, attend_blocks
from loraqa.squad import Answer, Passage, Question


@dataclass(frozen=True)
class Reading:
    """A way to read.

    Attributes:
        change_runner: returns the runner that trains and answers this way.
        change_passages: returns the passages to train on.
    """

    change_runner: Callable[[Runner, SegmentTokenizer], Runner] = lambda runner, _: runner
    change_passages: Callable[[Sequence[Passage]], Sequence[Passage]] = lambda passages: passages


ChangeTree = Callable[[Tree, SegmentTokenizer], list[Tree]]


def changing_trees(change: ChangeTree) -> Reading:
    """Return a reading whose trees are other ones. The branches must stay in their order."""
    return Reading(lambda runner, tokenizer: _ChangedTrees(runner, partial(_each, change, tokenizer)))


def _each(change: ChangeTree, tokenizer: SegmentTokenizer, trees: Sequence[Tree]) -> list[Tree]:
    return [changed for tree in trees for changed in change(tree, tokenizer)]


@dataclass(frozen=True)
class _ChangedTrees:
    """A `Runner` that computes other trees than those it is given."""

    inner: Runner
    change: Callable[[Sequence[Tree]], list[Tree]]

    @property
    def model(self):  # type: ignore[no-untyped-def]
        return self.inner.model

    def size(self, trees: Sequence[Tree]) -> int:
        return self.inner.size(self.change(trees))

    def answer_logits(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        return self.inner.answer_logits(self.change(trees))

    def gradients(self, adapter: FlatAdapter) -> Gradients:
        inner = self.inner.gradients(adapter)
        return lambda step: inner([self.change(trees) for trees in step])

    def prefill(self, trees: Sequence[Tree]) -> tuple[DecodingSession, Tensor]:
        return self.inner.prefill(self.change(trees))


def context_twice(tree: Tree, tokenizer: SegmentTokenizer) -> list[Tree]:
    """Repeat the context in the trunk, so that each of its tokens has seen all of it."""
    again = [_line_break(tokenizer), tree.trunk[len(tokenizer.start) :]]
    return [replace(tree, trunk=np.concatenate([tree.trunk, *again]))]


def question_twice(tree: Tree, tokenizer: SegmentTokenizer) -> list[Tree]:
    """Repeat the question in its branch, so that each of its tokens has seen all of it."""
    cue = len(_cue(tokenizer))
    branches = [
        replace(branch, prompt=np.concatenate([branch.prompt[:-cue], branch.prompt]))
        for branch in tree.branches
    ]
    return [replace(tree, branches=tuple(branches))]


def question_first(tree: Tree, tokenizer: SegmentTokenizer) -> list[Tree]:
    """Read the question, then the context: a tree for each question, and nothing is shared."""
    cue, start = _cue(tokenizer), len(tokenizer.start)
    return [
        replace(
            tree,
            trunk=np.concatenate(
                [
                    tree.trunk[:start],
                    branch.prompt[: -len(cue)],
                    _line_break(tokenizer),
                    tree.trunk[start:],
                ]
            ),
            branches=(replace(branch, prompt=cue),),
        )
        for branch in tree.branches
    ]


def _cue(tokenizer: SegmentTokenizer) -> TokenIds:
    """Return the ids of what stands between question and answer in the default template."""
    cue = Template().question("").rpartition(" ")[2]
    return tokenizer.encode([f" {cue}"])[0].ids


def _line_break(tokenizer: SegmentTokenizer) -> TokenIds:
    return tokenizer.encode(["\n"])[0].ids


@dataclass(frozen=True)
class PrefixAttention:
    """Attention over trees in which a trunk's tokens see the whole trunk, in the layers from `first`.

    This is a prefix language model (Raffel et al. 2020, section 3.2). Branches stay causal.
    """

    batch: TreeBatch
    causal: object
    first: int

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `TreeAttention.attend`."""
        if layer < self.first:
            attended: Tensor = self.causal.attend(layer, query, key, value, scaling)  # type: ignore[attr-defined]
            return attended
        return attend_blocks(query, key, value, self._blocks, scaling)

    def __post_init__(self) -> None:
        from loraqa.model.trees import branch_mask

        blocks: list[Block] = []
        for span in self.batch.spans:
            trunk = slice(span.start, span.branches_start)
            branches, tree = slice(span.branches_start, span.end), slice(span.start, span.end)
            everything = torch.ones(span.trunk, span.trunk, dtype=torch.bool)
            blocks += Block(trunk, trunk, everything), Block(branches, tree, branch_mask(span))
        object.__setattr__(self, "_blocks", blocks)


def both_ways(share: float) -> Reading:
    """Return a reading in which trunks are read in both directions in the last `share` of layers."""

    def change(runner: Runner, _: SegmentTokenizer) -> Runner:
        assert isinstance(runner, TreeRunner)
        layers = runner.model.config.num_hidden_layers
        first = round(layers * (1 - share))

        def make(batch: TreeBatch, device: torch.device) -> PrefixAttention:
            return PrefixAttention(batch, runner.make_tree_attention(batch, device), first)

        return replace(runner, make_tree_attention=make)

    return Reading(change)


def losing_also_on(question: float = 0.0, context: float = 0.0) -> Reading:
    """Return a reading whose loss is that of the answers, plus those of other texts by weight.

    Each is a mean over the tokens of its kind in the step.
    """

    def change(runner: Runner, _: SegmentTokenizer) -> Runner:
        assert isinstance(runner, TreeRunner)
        weights = torch.tensor([1.0, question, context])
        return replace(runner, make_gradients=lambda r, _: partial(_weighted, r, weights))

    return Reading(change)


def _weighted(runner: TreeRunner, weights: Tensor, step: Step) -> Launch:
    def launch() -> Tensor:
        batches = [(collate_trees(trees), _predicted(trees)) for trees in step]
        counts = sum(torch.bincount(kinds, minlength=3) for _, (_, _, kinds) in batches)
        answers = torch.zeros(())
        for batch, (places, targets, kinds) in batches:
            wanted = weights[kinds] > 0
            places, targets, kinds = places[wanted], targets[wanted], kinds[wanted]
            attention = runner.make_tree_attention(batch, runner.model.device)
            logits = tree_logits(runner.model, replace(batch, supervised=places), attention)
            losses = cross_entropy(logits.float(), targets, reduction="none")
            (losses * (weights / counts)[kinds]).sum().backward()
            answers += losses.detach()[kinds == 0].sum() / counts[0]
        return answers

    return launch


def _predicted(trees: Sequence[Tree]) -> tuple[Tensor, Tensor, Tensor]:
    """Return all tokens of a packed batch that predict one, what they predict, and its kind.

    The kinds are 0 in an answer, 1 in a question and 2 in a context.
    """
    places, targets, kinds = [], [], []
    start = 0
    for tree in trees:
        trunk = len(tree.trunk)
        places.append(np.arange(start, start + trunk - 1))
        targets.append(tree.trunk[1:])
        kinds.append(np.full(trunk - 1, 2))
        start += trunk
        for branch in tree.branches:
            places.append(np.arange(start, start + len(branch)))
            targets.append(np.concatenate([branch.prompt[1:], branch.answer]))
            kinds.append(np.repeat([1, 0], [len(branch.prompt) - 1, len(branch.answer)]))
            start += len(branch)
    joined = (torch.from_numpy(np.concatenate(part)).long() for part in (places, targets, kinds))
    return tuple(joined)  # type: ignore[return-value]


_WORD = re.compile(r"\w+(?:[-'’.]\w+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_LONGEST_SPAN = 4
_STOPWORDS = frozenset(
    "a an and are as at be been but by for from had has have he her his in into is it its not of "
    "on or she that the their they this to was were which who will with".split()
)


def with_clozes(passages: Sequence[Passage], share: float = 0.4) -> list[Passage]:
    """Add questions made from spans that occur more than once in their context.

    A sentence without the span is the question (Ram et al. 2021, "Splinter"). `share` is the most
    that they may add to the questions of a passage.
    """
    return [
        replace(
            passage,
            questions=(
                *passage.questions,
                *list(_clozes(passage.context, str(number)))[: round(share * len(passage.questions))],
            ),
        )
        for number, passage in enumerate(passages)
    ]


def _clozes(context: str, name: str) -> Iterator[Question]:
    """Yield a cloze for each recurring span of a context, the longest spans first."""
    words = [match.span() for match in _WORD.finditer(context)]
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for length in range(_LONGEST_SPAN, 0, -1):
        for first in range(len(words) - length + 1):
            start, end = words[first][0], words[first + length - 1][1]
            inner = context[start:end]
            if not ({inner.split()[0].lower(), inner.split()[-1].lower()} & _STOPWORDS):
                places[inner].append((start, end))
    taken: Counter[int] = Counter()
    for text, found in sorted(places.items(), key=lambda item: -len(item[0])):
        if len(found) < 2 or len(text) < 4:
            continue
        # The last occurrence is asked for, so that an earlier one can answer.
        start, end = found[-1]
        if any(taken[position] for position in range(start, end)):
            continue
        taken.update(range(start, end))
        left = max((m.end() for m in _SENTENCE_END.finditer(context, 0, start)), default=0)
        right = next((m.start() for m in _SENTENCE_END.finditer(context, end)), len(context))
        asked = f"{context[left:start]}___{context[end:right]}"
        first_place = found[0][0]
        yield Question(
            f"cloze-{name}-{start}",
            asked,
            (Answer(context[first_place : first_place + len(text)], first_place),),
        )


READINGS = {
    "plain": Reading(),
    "both ways in all layers": both_ways(1.0),
    "both ways in the last half": both_ways(0.5),
    "context twice": changing_trees(context_twice),
    "question twice": changing_trees(question_twice),
    "loss on the question": losing_also_on(question=0.3),
    "loss on question and context": losing_also_on(question=0.3, context=0.1),
    "clozes": Reading(change_passages=with_clozes),
    "question first": changing_trees(question_first),
}
