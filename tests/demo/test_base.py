"""The embedded base model: small, complete, loadable offline; its tokenizer is lossless."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

import loraqa.demo
from loraqa.demo.pretrain import EOS, POSITIONS
from loraqa.demo.world import test_passages as draw_test_passages

BASE = Path(loraqa.demo.__file__).parent / "base"
LIMIT = 10_000_000


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(BASE, local_files_only=True)


def test_the_whole_folder_is_small_and_holds_no_pickle() -> None:
    files = [path for path in BASE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert {path.name for path in files} >= {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {path.suffix for path in files} <= {".md", ".json", ".safetensors"}


def test_it_loads_and_predicts_texts_of_its_world(tokenizer: PreTrainedTokenizerBase) -> None:
    """The loss is far below a uniform guess over the vocabulary, ln 2304 = 7.7 nats."""
    model = AutoModelForCausalLM.from_pretrained(
        BASE, local_files_only=True, dtype=torch.float32
    ).eval()
    assert model.config.n_positions == POSITIONS
    texts = [passage.context for passage in draw_test_passages(seed=5, count=5)]
    losses = []
    for text in texts:
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.inference_mode():
            losses.append(model(input_ids=ids, labels=ids).loss.item())
    assert sum(losses) / len(losses) < 3.5


def test_eos_is_one_token_and_the_length_limit_is_the_models(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert tokenizer.eos_token == EOS
    assert tokenizer(EOS).input_ids == [tokenizer.eos_token_id]
    assert tokenizer.model_max_length == POSITIONS


@settings(max_examples=50)
@given(st.text())
def test_the_tokenizer_round_trips_every_text(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE, local_files_only=True)
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_a_passage_and_its_question_fit_the_model(tokenizer: PreTrainedTokenizerBase) -> None:
    for passage in draw_test_passages(seed=6, count=200):
        longest = max(
            len(tokenizer(f"{question.text} {question.answers[0].text}").input_ids)
            for question in passage.questions
        )
        assert len(tokenizer(passage.context).input_ids) + longest + 30 <= POSITIONS
