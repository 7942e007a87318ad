"""Stopping a model's computation: at the next module, and only in its context."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch
from tests.conftest import tiny_model

from loraqa.model.stop import ComputationStoppedError, check_stop, stopping

IDS = torch.tensor([[1, 2, 3]])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_model_stops_at_the_next_module_and_computes_as_before_afterwards(family: str) -> None:
    model, stop, computed = tiny_model(family), Event(), []
    before = model(IDS).logits
    modules = [module for module in model.modules() if not list(module.children())]
    for module in modules:
        module.register_forward_hook(lambda *_: computed.append(stop.is_set()))
    modules[len(modules) // 2].register_forward_hook(lambda *_: stop.set())
    with pytest.raises(ComputationStoppedError), stopping(model, stop):
        model(IDS)
    assert computed
    assert not any(computed)
    assert torch.equal(model(IDS).logits, before)


def test_nothing_stops_where_nobody_asks() -> None:
    model = tiny_model("gpt2")
    with stopping(model, Event()):
        within = model(IDS).logits
    assert torch.equal(within, model(IDS).logits)


def test_a_loop_without_a_model_stops() -> None:
    stop = Event()
    with stopping(tiny_model("gpt2"), stop):
        check_stop()
        stop.set()
        with pytest.raises(ComputationStoppedError):
            check_stop()
    check_stop()


def test_a_stop_reaches_only_its_own_thread() -> None:
    model, other, stop = tiny_model("gpt2"), tiny_model("gpt2"), Event()
    stop.set()
    with stopping(model, stop), ThreadPoolExecutor(1) as thread:
        thread.submit(check_stop).result()
        thread.submit(other, IDS).result()
