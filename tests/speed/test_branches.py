"""Branches alone have the gradients of whole trees; what is kept of trunks is never wrong."""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import assert_near, tiny_model
from tests.model.conftest import PASSAGES
from torch import Tensor

from loraqa.lora.adapt import adapt
from loraqa.lora.flat import FlatAdapter
from loraqa.lora.layer import lora_layers
from loraqa.lora.settings import LoraSettings
from loraqa.model.runner import StateRecorder, TreeRunner, tree_logits
from loraqa.model.trees import PackedTreeAttention
from loraqa.prompt.batch import collate_trees
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import TokenIds, Tree
from loraqa.speed import branches
from loraqa.speed.branches import BranchGradients, trunk_states
from loraqa.speed.kept import KeptTrunks, keep_trunks
from loraqa.speed.trial import fastest

KINDS = ["gpt2", "llama"]
KEEPERS: list[KeptTrunks] = []


@pytest.fixture(scope="module")
def trees(tiny_tokenizer: Any) -> list[Tree]:
    tokenizer = SegmentTokenizer.from_transformers(tiny_tokenizer)
    return PromptEncoder(tokenizer, Template(), 250, 20).encode_training(PASSAGES).trees


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of kept trunks in an empty cache."""
    monkeypatch.setenv("LORAQA_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "trunks"
    # Nothing is written into the cache of the next test.
    while KEEPERS:
        KEEPERS.pop().finish()


def adapted(kind: str, dtype: str = "float32", **options: Any) -> Any:
    """Make a tiny model whose adapter changes its logits."""
    model = tiny_model(kind, dtype)
    adapt(model, LoraSettings(rank=4, **{"activated": True, **options}), invocation=[7])
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1, generator=generator)
    return model


def gradient(runner: Any, trees: Sequence[Tree]) -> Tensor:
    adapter = FlatAdapter(runner.model)
    runner.gradients(adapter)([list(trees[:2]), list(trees[2:])])()
    return adapter.gradient


class TestBranches:
    @pytest.mark.parametrize("options", [{}, {"target_modules": "mlp"}], ids=str)
    @pytest.mark.parametrize(
        ("dtype", "near"), [("float64", 1e-7), ("float32", 1e-5), ("bfloat16", 0.06)]
    )
    @pytest.mark.parametrize("kind", KINDS)
    def test_gradients_are_those_of_whole_trees(
        self, kind: str, dtype: str, near: float, options: Any, trees: list[Tree]
    ) -> None:
        expected = gradient(TreeRunner(adapted(kind, dtype, **options)), trees)
        found = gradient(branches.wrap(TreeRunner(adapted(kind, dtype, **options))), trees)
        assert_near(found, expected, near)

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_is_used_beside_all_others(self, kind: str, trees: list[Tree]) -> None:
        expected = gradient(TreeRunner(adapted(kind)), trees)
        runner, names = fastest(TreeRunner(adapted(kind)), ["training", "answering"])
        assert "branches-alone" in names
        assert_near(gradient(runner, trees), expected, 1e-4)

    def test_a_plain_lora_is_trained_on_whole_trees(self) -> None:
        plain = TreeRunner(adapted("gpt2", activated=False))
        assert not branches.applies(plain, frozenset(["training"]))
        assert keep_trunks(plain, 1.0) is plain

    def test_trunks_run_without_gradients_and_branches_with(self, trees: list[Tree]) -> None:
        model = adapted("gpt2")
        passes: list[tuple[int, bool]] = []
        model.transformer.wte.register_forward_hook(
            lambda _, ids, __: passes.append((ids[0].numel(), torch.is_grad_enabled()))
        )
        adapter = FlatAdapter(model)
        branches.wrap(TreeRunner(model)).gradients(adapter)([trees])()
        trunks = sum(len(tree.trunk) for tree in trees)
        assert passes == [(trunks, False), (sum(map(len, trees)) - trunks, True)]

    @pytest.mark.parametrize("kind", KINDS)
    def test_trunks_have_the_states_of_the_base_alone(self, kind: str, trees: list[Tree]) -> None:
        model, base = adapted(kind), tiny_model(kind)
        for layer in lora_layers(model).values():
            torch.nn.init.constant_(layer.lora_B, torch.nan)
        found = trunk_states(TreeRunner(model), [tree.trunk for tree in trees])
        TreeRunner(base)
        for tree, states in zip(trees, found, strict=True):
            batch = collate_trees([tree])
            recorded = StateRecorder(PackedTreeAttention(batch, base.device))
            with torch.no_grad():
                tree_logits(base, batch, recorded)
            for number, of_layer in enumerate(states):
                expected = torch.stack(recorded.states[number])[:, :, : len(tree.trunk)]
                assert_near(of_layer, expected, 1e-5)


class Counting:
    """`Trunks` that counts what it computes."""

    def __init__(self, runner: TreeRunner) -> None:
        self.runner, self.computed = runner, 0

    def __call__(self, trunks: Sequence[TokenIds]) -> list[Tensor]:
        self.computed += len(trunks)
        return trunk_states(self.runner, trunks)


@pytest.fixture
def compute() -> Counting:
    return Counting(TreeRunner(adapted("gpt2")))


@pytest.fixture
def trunks(trees: list[Tree]) -> list[TokenIds]:
    return [tree.trunk for tree in trees]


def kept(compute: Counting, identity: str = "base", room: int = 2**30) -> KeptTrunks:
    KEEPERS.append(KeptTrunks(compute, identity, room))
    return KEEPERS[-1]


def keep(
    compute: Counting, trunks: list[TokenIds], identity: str = "base", room: int = 2**30
) -> list[Tensor]:
    """Keep trunks; return their states."""
    keeper = kept(compute, identity, room)
    states = keeper(trunks)
    keeper.finish()
    compute.computed = 0
    return states


def files(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert [torch.equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * 3


class TestKept:
    def test_a_trunk_is_computed_once(self, compute: Counting, trunks: list[TokenIds]) -> None:
        states = keep(compute, trunks[:2])
        everything = kept(compute)([trunks[2], *trunks[:2]])
        assert compute.computed == 1
        assert_same(everything[1:] + states[:1], states + states[:1])

    def test_a_damaged_entry_is_computed_again(
        self, compute: Counting, trunks: list[TokenIds], cache: Path
    ) -> None:
        states = keep(compute, trunks)
        damaged, cut, _ = files(cache)
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x55")
        cut.write_bytes(cut.read_bytes()[:-8])
        keeper = kept(compute)
        assert_same(keeper(trunks), states)
        keeper.finish()
        assert compute.computed == 2
        assert_same(kept(compute)(trunks), states)
        assert compute.computed == 2

    def test_an_entry_of_another_trunk_is_not_used(
        self, compute: Counting, trunks: list[TokenIds], cache: Path
    ) -> None:
        states = keep(compute, trunks)
        first, second, _ = files(cache)
        key, _, ending = first.name.split(".")
        _, own_hash, _ = second.name.split(".")
        first.unlink()
        shutil.copyfile(second, first.with_name(f"{key}.{own_hash}.{ending}"))
        assert_same(kept(compute)(trunks), states)
        assert compute.computed == 1

    def test_an_entry_of_another_base_is_not_used(
        self, compute: Counting, trunks: list[TokenIds], cache: Path
    ) -> None:
        keep(compute, trunks)
        keep(compute, trunks, "another")
        assert len(files(cache)) == 6

    def test_what_is_there_stays_when_the_room_is_used_up(
        self,
        compute: Counting,
        trunks: list[TokenIds],
        cache: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        room = sum(states.nbytes for states in compute(trunks)[:2]) + 1
        compute.computed = 0
        keeper = kept(compute, room=room)
        with caplog.at_level(logging.INFO, "loraqa"):
            for _ in range(3):
                keeper([*trunks[:2]])
                keeper([trunks[2]])
        keeper.finish()
        assert compute.computed == 2 + 3
        assert len(files(cache)) == 2
        assert [record.message.count("no more room") for record in caplog.records] == [1]

    def test_processes_that_train_together_share_the_room(
        self, compute: Counting, trunks: list[TokenIds], cache: Path
    ) -> None:
        room = 2 * sum(states.nbytes for states in compute(trunks)[:2]) + 2
        keeper = KeptTrunks(compute, "base", room, sharers=2)
        KEEPERS.append(keeper)
        for trunk in trunks:
            keeper([trunk])
        keeper.finish()
        assert len(files(cache)) == 2

    def test_trunks_of_other_bases_make_way_the_oldest_first(
        self, compute: Counting, trunks: list[TokenIds], cache: Path
    ) -> None:
        for name, seconds in (("new", 2000), ("old", 1000)):
            keep(compute, trunks, name)
            os.utime(cache / name, (seconds, seconds))
        size = sum(path.stat().st_size for path in files(cache / "new"))
        keep(compute, trunks, "own")
        for room, left in ((7 * size, 9), (5 * size, 6), (3 * size, 3)):
            kept(compute, "own", room)
            assert len(files(cache)) == left
        kept(compute, "own", 1)
        assert len(files(cache)) == 3

    def test_a_process_that_makes_room_at_the_same_time_leaves_room_for_all(
        self,
        compute: Counting,
        trunks: list[TokenIds],
        cache: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        keep(compute, trunks, "old")
        room = 2 * sum(path.stat().st_size for path in files(cache)) - 2
        remove = shutil.rmtree

        def remove_after_another(path: Path, **options: Any) -> None:
            remove(path)
            remove(path, **options)

        monkeypatch.setattr(shutil, "rmtree", remove_after_another)
        keep(compute, trunks, "own", room)
        assert len(files(cache / "own")) == len(trunks)

    def test_without_a_cache_everything_is_computed(
        self, compute: Counting, trunks: list[TokenIds], cache: Path
    ) -> None:
        cache.parent.write_text("no folder")
        keeper = kept(compute)
        assert_same(keeper(trunks), keeper(trunks))
        assert compute.computed == 6

    def test_gradients_stay_the_same_to_the_bit(self, trees: list[Tree], cache: Path) -> None:
        runner = branches.wrap(TreeRunner(adapted("gpt2")))
        expected = gradient(runner, trees)
        for _ in range(2):
            keeping = keep_trunks(runner, 1.0)
            assert isinstance(keeping, TreeRunner)
            assert torch.equal(gradient(keeping, trees), expected)
            assert isinstance(keeping.make_gradients, BranchGradients)
            assert isinstance(keeping.make_gradients.trunks, KeptTrunks)
            keeping.make_gradients.trunks.finish()
        assert len(files(cache)) == len(trees)

    def test_the_base_decides_the_name_and_not_what_was_learned(self, cache: Path) -> None:
        model = adapted("gpt2")
        runner = branches.wrap(TreeRunner(model))
        keep_trunks(runner, 1.0)
        for layer in lora_layers(model).values():
            layer.lora_B.data += 1
        keep_trunks(runner, 1.0)
        assert len(list(cache.iterdir())) == 1
        embedding = model.get_input_embeddings().weight
        embedding.data[np.argmax(embedding.norm(dim=1).detach().numpy())] *= 1.5
        keep_trunks(runner, 1.0)
        assert len(list(cache.iterdir())) == 2
        keep_trunks(branches.wrap(TreeRunner(adapted("gpt2", "bfloat16"))), 1.0)
        assert len(list(cache.iterdir())) == 3
        keep_trunks(runner, 0.0)
        assert len(list(cache.iterdir())) == 3
