"""The ablation leaves out each acceleration that works here."""

import pytest
from benchmarks.ablation import ablation, answering
from benchmarks.base import on_a_gpu
from benchmarks.harness import Contender, Job
from benchmarks.suites import FULL
from tests.conftest import needs_compiler

IN_BOTH = ["fused-gelu", "compiled-gelu", "compiled-trees"]
OF_LLAMA = ["compiled-norms", "compiled-gates", "compiled-rotary", "shared-inputs"]
IN_ANSWERING = ["compiled-rows", "prepacked-weights"]


@needs_compiler
@pytest.mark.skipif(on_a_gpu(), reason="a GPU has other accelerations")
def test_each_acceleration_of_a_cpu_is_left_out_and_then_all() -> None:
    training = ablation("", "gpt2", "", "", FULL, "float32").sides
    names = ["nothing", *IN_BOTH, "all"]
    assert list(training) == [*names, "trees: padded rows instead"]
    assert [training[name].options["without"] for name in names] == [
        [],
        *([name] for name in IN_BOTH),
        ["all"],
    ]
    assert list(answering("", FULL, "float32").sides) == [
        *("nothing", *IN_BOTH, *IN_ANSWERING, "all")
    ]


@needs_compiler
@pytest.mark.skipif(on_a_gpu(), reason="a GPU has other accelerations")
def test_a_llama_has_others() -> None:
    sides = ablation("", "llama", "", "", FULL, "float32").sides
    assert list(sides) == [
        *("nothing", *OF_LLAMA, "compiled-trees", "all"),
        "trees: padded rows instead",
    ]


def test_a_gain_is_how_many_times_as_long_a_step_takes() -> None:
    groups = {
        name: [Contender(Job("a step", "f", {}), [{"seconds": [seconds]}])]
        for name, seconds in {"nothing": 2, "fused-gelu": 3, "all": 9}.items()
    }
    ratios = ablation("", "gpt2", "", "", FULL, "float32").conclude(groups).ratios
    assert ratios == {"gain of fused-gelu": 1.5, "gain of all": 4.5}
