"""Accelerations are compared with the plain algorithm; wrong and failing ones are left out."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.conftest import tiny_model
from tests.train.conftest import settings
from torch import Tensor

from loraqa import speed
from loraqa.errors import InputError
from loraqa.lora.adapt import adapt
from loraqa.lora.flat import FlatAdapter
from loraqa.model.loss import Gradients
from loraqa.model.memory import LackOfMemoryError
from loraqa.model.rows import PaddedRowAttention
from loraqa.model.runner import PaddedRunner, Runner, TreeRunner
from loraqa.model.trees import PackedTreeAttention
from loraqa.speed import trial
from loraqa.speed.trial import (
    DoesNotApplyError,
    UnusableError,
    check_close,
    check_each_element,
    fastest,
)


class Acceleration:
    """An acceleration that replaces some fields of a runner."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def applies(self, runner: Runner, _uses: frozenset[str]) -> bool:
        return isinstance(runner, TreeRunner)

    def wrap(self, runner: TreeRunner) -> Runner:
        return replace(runner, **self.fields)


class Scaled:
    """Attention whose result is wrong by a factor."""

    def attend(self, *args: Any, **kwargs: Any) -> Tensor:
        attended: Tensor = super().attend(*args, **kwargs)  # type: ignore[misc]
        return 1.1 * attended


class WrongTrees(Scaled, PackedTreeAttention):
    pass


class WrongRows(Scaled, PaddedRowAttention):
    pass


def wrong_gradients(runner: Runner, adapter: FlatAdapter) -> Gradients:
    plain = TreeRunner(runner.model).gradients(adapter)

    def prepare(step: Any, targets: int | None = None) -> Any:
        def launch() -> Tensor:
            loss = plain(step, targets)()
            adapter.gradient.mul_(1.3)
            return loss

        return launch

    return prepare


def right_once(runner: Runner, adapter: FlatAdapter) -> Gradients:
    """Gradients that are right the first time alone, as of a graph that does not replay."""
    plain = TreeRunner(runner.model).gradients(adapter)
    calls: list[Any] = []

    def prepare(step: Any, targets: int | None = None) -> Any:
        calls.append(step)
        return plain(step, targets) if len(calls) == 1 else lambda: torch.zeros(())

    return prepare


def use(monkeypatch: pytest.MonkeyPatch, *accelerations: Any) -> None:
    """Let these be all accelerations, named one, two, ..."""
    names = ["one", "two", "three"][: len(accelerations)]
    listed = dict(zip(names, accelerations, strict=True))
    monkeypatch.setattr(trial, "chosen", lambda *_: {name: name for name in listed})
    monkeypatch.setattr(trial, "import_module", listed.__getitem__)


def adapted() -> TreeRunner:
    model = tiny_model("gpt2")
    adapt(model, settings().lora)
    return TreeRunner(model)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"make_tree_attention": WrongTrees}, "logits"),
        ({"make_row_attention": WrongRows}, "logits in decoding"),
        ({"make_gradients": wrong_gradients}, "gradients"),
        ({"make_gradients": right_once}, "gradients"),
    ],
)
def test_wrong_results_are_left_out_and_the_others_stay(
    fields: dict[str, Any],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class OtherTrees(PackedTreeAttention):
        pass

    use(monkeypatch, Acceleration(**fields), Acceleration(make_tree_attention=OtherTrees))
    with caplog.at_level(logging.INFO, "loraqa"):
        runner, names = fastest(adapted(), ["training", "answering"])
    assert names == ("two",)
    assert runner == replace(adapted(), model=runner.model, make_tree_attention=OtherTrees)
    (message,) = caplog.messages
    error = message.rpartition("(relative error ")[2].rstrip(").")
    assert message == (
        f"The acceleration one is not used, because its {reason} differ from the plain ones "
        f"(relative error {error})."
    )
    assert 1e-3 < float(error) < 1


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


class RightForward(PackedTreeAttention):
    def attend(self, *args: Any, **kwargs: Any) -> Tensor:
        attended: Tensor = WrongBackward.apply(super().attend(*args, **kwargs))
        return attended


@pytest.mark.parametrize("uses", [["training"], ["answering"]])
def test_kernels_that_depend_on_the_model_are_compared_with_their_gradients(
    uses: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(monkeypatch, Acceleration(make_tree_attention=RightForward))
    monkeypatch.setattr(trial, "_kernels_depend_on_the_model", lambda _: True)
    with caplog.at_level(logging.INFO, "loraqa"):
        assert fastest(adapted(), uses)[1] == (() if uses == ["training"] else ("one",))
    assert ("its gradients differ" in caplog.text) == (uses == ["training"])


def test_only_what_was_replaced_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("compared")

    use(monkeypatch, Acceleration(), Acceleration(make_row_attention=WrongRows))
    monkeypatch.setattr(trial, "_gradients", refuse)
    assert fastest(adapted(), ["training"])[1] == ("one",)


def test_a_failure_is_explained_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Acceleration):
        def wrap(self, _: TreeRunner) -> Runner:
            raise self.fields["error"]

    use(
        monkeypatch,
        Failing(error=RuntimeError("no such operator\nand more")),
        Failing(error=UnusableError("there is no compiler here")),
        # Users are not told of what their model simply does not need.
        Failing(error=DoesNotApplyError("no adapted layers share their input")),
    )
    with caplog.at_level(logging.INFO, "loraqa"):
        runner, names = fastest(adapted(), ["training"])
    assert (names, runner.make_tree_attention) == ((), PackedTreeAttention)  # type: ignore[attr-defined]
    assert caplog.messages == [
        "The acceleration one is not used, because it fails here (RuntimeError: no such operator).",
        "The acceleration two is not used, because there is no compiler here.",
    ]


def test_a_lack_of_memory_is_not_taken_for_a_wrong_acceleration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    use(monkeypatch, Acceleration(make_tree_attention=full))
    with pytest.raises(LackOfMemoryError) as caught:
        fastest(adapted(), ["training"])
    assert str(caught.value) == (
        "Out of memory while accelerations were tried on small trees (CUDA out of memory): free "
        "some of it, or choose a smaller model, or another device (--device; in a training, "
        "model.device)."
    )


def test_a_runner_without_trees_keeps_what_it_is() -> None:
    runner, names = fastest(PaddedRunner(tiny_model("gpt2")), ["answering"])
    assert isinstance(runner, PaddedRunner)
    assert not {"compiled-trees", "attention-by-products", "compiled-rows", "grouped-rows"} & set(
        names
    )


def test_names_are_left_out() -> None:
    _, everything = fastest(adapted(), ["training", "answering"])
    assert "fused-gelu" in everything
    without = fastest(adapted(), ["training", "answering"], ["fused-gelu"])[1]
    assert without == tuple(name for name in everything if "gelu" not in name)
    assert fastest(adapted(), ["training", "answering"], iter(["all"]))[1] == ()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        fastest(adapted(), ["training"], ["gelu"])
    known = ", ".join([*speed.OF_MODELS, *speed.OF_PREPARATION, *speed.OF_COMMANDS])
    assert str(caught.value) == f"There is no acceleration 'gelu'; give `all`, or one of {known}."


@pytest.mark.parametrize("wrong", [torch.nan, 2.0])
def test_what_is_not_close_is_refused(wrong: float) -> None:
    check_close(torch.ones(3), torch.ones(3), 0.0, "outputs")
    check_close(torch.zeros(3), torch.zeros(3), 0.0, "outputs")
    with pytest.raises(UnusableError):
        check_close(torch.tensor([1.0, wrong, 1.0]), torch.ones(3), 0.1, "outputs")


def test_a_single_wrong_element_of_a_kernel_is_refused() -> None:
    expected = torch.linspace(-9, 9, 999)
    check_each_element(expected.clone(), expected, "outputs")
    actual = expected.clone()
    actual[-1] += 1e-3
    check_close(actual, expected, 1e-5, "outputs")
    with pytest.raises(UnusableError, match="^its outputs differ from the plain ones"):
        check_each_element(actual, expected, "outputs")
