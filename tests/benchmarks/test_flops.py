"""The formula against torch's count of operations in GPT-2 and Llama with PEFT."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.flops import Work, matrices, training_flops, tree_work
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from loraqa.prompt.batch import collate_trees
from loraqa.prompt.tree import Branch, Tree

RANK = 3
ROWS, LENGTH = 2, 7


GPT2 = GPT2Config(
    n_layer=2, n_embd=16, n_head=2, vocab_size=50, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0
)
LLAMA = LlamaConfig(
    num_hidden_layers=2,
    hidden_size=16,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=24,
    vocab_size=50,
)
QKV = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]


@pytest.mark.parametrize(
    ("config", "adapted"),
    [
        (GPT2, ["attn.c_attn"]),
        (GPT2, ["attn.c_attn", "mlp.c_proj"]),
        (GPT2, None),
        (LLAMA, QKV),
        (LLAMA, [*QKV, "mlp.up_proj"]),
        (LLAMA, None),
    ],
)
def test_the_formula_equals_torchs_count(config: Any, adapted: Sequence[str] | None) -> None:
    """With eager attention every token sees all of its row; all tokens are supervised."""
    names = list(adapted or matrices(config))
    lora = LoraConfig(
        r=RANK,
        target_modules=names,
        fan_in_fan_out=config is GPT2,
        task_type="CAUSAL_LM",
        lora_dropout=0.0,
    )
    base = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = get_peft_model(base, lora)
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(50, (ROWS, LENGTH))).logits.sum().backward()

    tokens, pairs = ROWS * LENGTH, ROWS * LENGTH**2
    work = Work(tokens, supervised=tokens, pairs=pairs, supervised_pairs=pairs)
    assert training_flops(config, RANK, names, work) == counter.get_total_flops()


@given(
    st.lists(
        st.tuples(
            st.integers(1, 9),
            st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=4),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_the_work_of_trees_equals_that_of_their_batch(
    sizes: list[tuple[int, list[tuple[int, int]]]],
) -> None:
    """A token at position p of its path sees p other tokens and itself."""
    trees = [tree(trunk, branches) for trunk, branches in sizes]
    batch = collate_trees(trees)
    seen = 1 + batch.position_ids[0]
    assert tree_work(trees) == Work(
        tokens=len(seen),
        supervised=len(batch.supervised),
        pairs=int(seen.sum()),
        supervised_pairs=int(seen[batch.supervised].sum()),
    )


def tree(trunk: int, branches: Sequence[tuple[int, int]]) -> Tree:
    def ids(length: int) -> np.ndarray:
        return np.zeros(length, dtype=np.int32)

    made = tuple(Branch("", ids(prompt), ids(answer)) for prompt, answer in branches)
    return Tree(ids(trunk), made, passage=0, window=(0, 0))
