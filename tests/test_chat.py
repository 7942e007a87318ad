"""The chat template of a base: trained with, recorded as text, resumed and asked with."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from loraqa.prompt.chat import chat_template
from loraqa.squad import write_official
from tests.conftest import Call, town_passages

pytestmark = pytest.mark.usefixtures("without_plots")

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


@pytest.fixture
def base(tiny_folder: Path, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """A base with a chat template, and data beside it."""
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    write_official(tmp_path / "train.json", town_passages(4), "1.1")
    (tmp_path / "town.txt").write_text("The mill was built by Ruth Olen.")
    return folder


def test_a_run_records_the_text_and_goes_on_with_it(call: Call, base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    text = chat_template(AutoTokenizer.from_pretrained(base))
    assert "{<|im_start|>}" in text
    run, data = tmp_path / "run", tmp_path / "train.json"
    chosen = ["--set", "prompt.template=chat", "--set", "optimisation.max_steps=1"]
    train = ["train", "--model", base, "--train", data, "--out", run, *chosen]
    assert call(*train)[0] == 0
    assert json.loads((run / "adapter" / "loraqa.json").read_text())["template"] == text
    shutil.rmtree(run / "adapter")
    assert call("train", "--out", run, "--resume", *chosen)[0] == 0
    assert (run / "adapter").is_dir()
    status, out, errors = call("ask", run, "--context-file", tmp_path / "town.txt", "Who?")
    assert (status, out.splitlines()[0]) == (0, "Who?")
    assert "not fine-tuned" not in errors


def test_a_base_is_asked_with_its_own_template(call: Call, base: Path, tmp_path: Path) -> None:
    def answers(*options: str) -> Any:
        town = tmp_path / "town.txt"
        status, out, _ = call("ask", base, "--context-file", town, "--json", *options, "Who?")
        assert status == 0
        return json.loads(out)

    own, usual = answers("--template", "chat"), answers()
    assert own != usual
    spelt = "{context} Q: {question} A: {answer}"
    assert answers("--template", spelt) not in (own, usual)


def test_a_template_that_cannot_work_is_refused(call: Call, base: Path, tmp_path: Path) -> None:
    ask = ["ask", base, "--context-file", tmp_path / "town.txt", "Who?", "--template"]
    assert call(*ask, "chatty")[0] == 2
    (base / "chat_template.jinja").unlink()
    status, _, errors = call(*ask, "chat")
    assert status == 2
    assert "has no chat template" in errors
