"""Other ways to read a context than before its question, with the trunk still computed once.

A causal model reads a context without knowing the question. Each function here changes the trees,
the attention or the loss of a run, and `loraqa` trains and answers with the change.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from loraqa.lora.flat import FlatAdapter
from loraqa.model.attention import TreeAttention
from loraqa.model.loss import Gradients, Launch
from loraqa.model.runner import Runner, TreeRunner, tree_logits
from loraqa.model.session import DecodingSession
from loraqa.model.trees import branch_mask
from loraqa.prompt.batch import TreeBatch, collate_trees
from loraqa.prompt.plan import Step
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import TokenIds, Tree
from loraqa.speed.cpu.products import Block, attend_blocks
from loraqa.squad import Passage
from study.clozes import with_clozes
from study.distractors import with_distractors


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

    def change_runner(runner: Runner, tokenizer: SegmentTokenizer) -> Runner:
        return _ChangedTrees(runner, partial(_each, change, tokenizer))

    return Reading(change_runner)


def _each(change: ChangeTree, tokenizer: SegmentTokenizer, trees: Sequence[Tree]) -> list[Tree]:
    return [changed for tree in trees for changed in change(tree, tokenizer)]


@dataclass(frozen=True)
class _ChangedTrees:
    """A `Runner` that computes other trees than it is given; see `Runner` for the methods."""

    inner: Runner
    change: Callable[[Sequence[Tree]], list[Tree]]

    @property
    def model(self) -> PreTrainedModel:
        return self.inner.model

    def size(self, trees: Sequence[Tree]) -> int:
        return self.inner.size(self.change(trees))

    def answer_logits(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        return self.inner.answer_logits(self.change(trees))

    def gradients(self, adapter: FlatAdapter) -> Gradients:
        inner = self.inner.gradients(adapter)
        return lambda step, targets=None: inner([self.change(each) for each in step], targets)

    def prefill(self, trees: Sequence[Tree]) -> tuple[DecodingSession, Tensor]:
        return self.inner.prefill(self.change(trees))


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
    """Attention over trees in which trunks are read in both directions from the layer `first` on.

    This is a prefix language model (Raffel et al. 2020, section 3.2). Branches stay causal.
    """

    causal: TreeAttention
    blocks: Sequence[Block]
    first: int

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `TreeAttention.attend`."""
        if layer < self.first:
            return self.causal.attend(layer, query, key, value, scaling)
        return attend_blocks(query, key, value, self.blocks, scaling)


def _blocks(batch: TreeBatch) -> list[Block]:
    """Let each token of a trunk see all of it, and a branch its trunk and itself."""
    blocks: list[Block] = []
    for span in batch.spans:
        trunk = slice(span.start, span.branches_start)
        branches, tree = slice(span.branches_start, span.end), slice(span.start, span.end)
        everything = torch.ones(span.trunk, span.trunk, dtype=torch.bool)
        blocks += Block(trunk, trunk, everything), Block(branches, tree, branch_mask(span))
    return blocks


def both_ways(share: float) -> Reading:
    """Return a reading of trunks in both directions in the last `share` of all layers."""

    def change(runner: Runner, _: SegmentTokenizer) -> Runner:
        runner = _of_trees(runner)
        first = round(runner.model.config.num_hidden_layers * (1 - share))

        def make(batch: TreeBatch, device: torch.device) -> PrefixAttention:
            causal = runner.make_tree_attention(batch, device)
            return PrefixAttention(causal, _blocks(batch), first)

        return replace(runner, make_tree_attention=make)

    return Reading(change)


def _of_trees(runner: Runner) -> TreeRunner:
    if not isinstance(runner, TreeRunner):
        raise TypeError("the model cannot compute trees")
    return runner


def losing_also_on(question: float = 0.0, context: float = 0.0) -> Reading:
    """Return a reading whose loss is that of the answers, plus those of other texts by weight.

    Each is a mean over the tokens of its kind in the step.
    """

    def change(runner: Runner, _: SegmentTokenizer) -> Runner:
        runner = _of_trees(runner)
        weights = torch.tensor([1.0, question, context])
        return replace(
            runner,
            make_gradients=lambda *_: lambda step, targets=None: _weighted(runner, weights, step),  # noqa: ARG005
        )

    return Reading(change)


def _weighted(runner: TreeRunner, weights: Tensor, step: Step) -> Launch:
    def launch() -> Tensor:
        batches = [(collate_trees(trees), _predicted(trees)) for trees in step]
        counts = torch.cat([kinds for _, (_, _, kinds) in batches]).bincount(minlength=3)
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


READINGS = {
    "plain": Reading(),
    "both ways in all layers": both_ways(1.0),
    "both ways in the last half": both_ways(0.5),
    "question twice": changing_trees(question_twice),
    "loss on the question": losing_also_on(question=0.3),
    "loss on question and context": losing_also_on(question=0.3, context=0.1),
    "clozes": Reading(change_passages=with_clozes),
    "distractors": Reading(change_passages=with_distractors),
    "question first": changing_trees(question_first),
}
