"""Models are named by folders and by names on the hub; errors say which of them there are."""

import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from loraqa.errors import InputError
from loraqa.model.source import choose_max_length, load_tokenizer, position_limit


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path} has no config.json; give"):
        load_tokenizer(tmp_path)


def test_an_empty_name_is_not_the_working_directory(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_folder)
    with pytest.raises(InputError, match="name is empty"):
        load_tokenizer("")


def test_a_name_in_a_folder_that_exists_is_never_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no folder runs/nope; give"):
        load_tokenizer("runs/nope")


@pytest.mark.usefixtures("no_hub")
def test_a_hub_out_of_reach_names_the_local_alternative() -> None:
    with pytest.raises(InputError, match=r"no folder example/model.*hf download example/model"):
        load_tokenizer("example/model")


def test_a_tokenizer_comes_with_the_models_limit(tiny_folder: Path) -> None:
    tokenizer, config = load_tokenizer(tiny_folder)
    assert choose_max_length(None, config) == 256
    assert choose_max_length(200, config) == 200
    with pytest.raises(InputError, match="takes no more than 256"):
        choose_max_length(257, config)
    assert tokenizer.decode(tokenizer.encode(["a town"])[0].ids) == "a town"


def test_a_model_without_position_table_gets_a_limit() -> None:
    assert position_limit(transformers.BloomConfig()) == 1024


def test_a_tokenizer_needs_no_pytorch(tiny_folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from loraqa.model.source import load_tokenizer\n"
        f"tokenizer, config = load_tokenizer({str(tiny_folder)!r})\n"
        "print(*tokenizer.encode(['a town'])[0].ids, config.hidden_size)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tokenizer, config = load_tokenizer(tiny_folder)
    expected = [*tokenizer.encode(["a town"])[0].ids, config.hidden_size]
    assert list(map(int, done.stdout.split())) == expected
