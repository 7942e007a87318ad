"""A file that is not UTF-8 is refused with a command that makes it UTF-8."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from loraqa.batch.open import open_source
from loraqa.batch.plan import make_plan
from loraqa.documents import read_document
from loraqa.errors import InputError
from loraqa.squad import read_passages
from loraqa.squad.predictions import read_predictions
from loraqa.train.settings import read_yaml

TABLE = "context,question\nDie Mühle gehört Käthe – für 3 €.,Wem gehört sie?\n"
DATA = "context,question,answer\nDie Mühle gehört Käthe.,Wem gehört sie?,Käthe\n"
READERS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "data": ("a.csv", DATA, read_passages),
    "a table to answer": ("a.csv", TABLE, lambda path: make_plan(open_source(path))),
    "lines to answer": (
        "a.jsonl",
        json.dumps({"context": "Käthe", "question": "Wer?"}, ensure_ascii=False) + "\n",
        lambda path: make_plan(open_source(path)),
    ),
    "a text": ("a.txt", "Käthe\n", read_document),
    "predictions": ("a.json", '{"q": "Käthe"}', read_predictions),
    "settings": ("a.yaml", "seed: 1  # für Käthe\n", read_yaml),
}


@pytest.mark.skipif(shutil.which("iconv") is None, reason="no iconv here; install it")
@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-be"])
def test_the_command_in_the_message_makes_the_file_readable(
    kind: str, encoding: str, tmp_path: Path
) -> None:
    name, text, read = READERS[kind]
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    old, new = tmp_path / name, tmp_path / f"new-{name}"
    old.write_bytes(f"{mark}{text}".encode(encoding))
    with pytest.raises(InputError) as refused:
        read(old)
    message = str(refused.value)
    assert message.startswith(f"{old} is not UTF-8: ")
    assert len(message.splitlines()) == 1
    (command,) = re.findall("`(iconv .*)`", message)
    command = command.replace("OLD", str(old)).replace("NEW", str(new))
    subprocess.run(command, shell=True, check=True)
    assert new.read_text(encoding="utf-8-sig") == text
    read(new)
