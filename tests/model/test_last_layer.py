"""The last layer at wanted tokens alone gives what the whole layer gives there."""

from typing import Any

import pytest
import torch
from tests.conftest import tiny_model

from loraqa.model.blocks import BlockTrees
from loraqa.model.last_layer import last_layer, wanted_logits
from loraqa.model.runner import TreeRunner
from loraqa.prompt.batch import collate_trees
from loraqa.prompt.tree import Tree


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "qwen3", "mistral"])
def test_logits_are_those_of_the_whole_layer(kind: str, trees: list[Tree]) -> None:
    model = TreeRunner(tiny_model(kind, "float64")).model
    batch = collate_trees(trees)
    packed = BlockTrees(batch.spans, batch.supervised)
    whole = model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, trees=packed, use_cache=False
    ).logits[0]
    computed: list[int] = []
    last_layer(model).mlp.register_forward_hook(
        lambda _, __, output: computed.append(output.shape[1])
    )
    torch.testing.assert_close(wanted_logits(model, batch, packed), whole[batch.supervised])
    assert computed == [len(batch.supervised)]


def test_the_model_is_left_as_it_was(trees: list[Tree]) -> None:
    model: Any = TreeRunner(tiny_model("gpt2")).model
    before = model.transformer.h[-1].forward
    batch = collate_trees(trees)
    packed = BlockTrees(batch.spans, batch.supervised)
    model.transformer.h[-1].mlp.c_fc.weight = None
    with pytest.raises((AttributeError, TypeError)):
        wanted_logits(model, batch, packed)
    assert model.transformer.h[-1].forward == before
