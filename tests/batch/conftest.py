"""Tables of questions in every format, and models that answer them."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from tests.conftest import tiny_model

from loraqa.batch.answer import Done, answer_file
from loraqa.batch.open import open_source
from loraqa.batch.options import Options
from loraqa.batch.plan import make_plan
from loraqa.documents import Document
from loraqa.reader_options import ReaderOptions

Rows = Sequence[dict[str, Any]]

CONTEXTS = [
    "The old town lies on the river Aune. Its mill was built by Ruth Olen in 1203.",
    "Salt came from the hills, and the salt road is named after it.",
    "A king lived in the castle until 1410; then it burned down.",
]
QUESTIONS = ["Who built the mill?", "When?", "Where did salt come from?", "What burned down?"]

ROWS = [
    {"id": f"q{context}{question}", "context": CONTEXTS[context], "question": QUESTIONS[question]}
    for context in range(3)
    for question in range(4)
]


def write_csv(path: Path, rows: Rows) -> Path:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), newline="")
    return path


def write_lines(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=5)
    return path


def read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_parquet(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


FORMATS: dict[str, tuple[Callable[[Path, Rows], Path], Callable[[Path], list[dict[str, Any]]]]] = {
    "csv": (write_csv, read_csv),
    "jsonl": (write_lines, read_lines),
    "parquet": (write_parquet, read_parquet),
}


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any
) -> Path:
    folder = tmp_path_factory.mktemp(str(request.param))
    tiny_model(request.param).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def gpt2(tiny_folder: Path) -> Path:
    return tiny_folder


def answered(
    data: Path,
    out: Path,
    model: Path,
    rows: int = 5,
    document: Document | None = None,
    **options: Any,
) -> Done:
    """Answer a file with short answers, which are quick."""
    names = {field.name for field in fields(ReaderOptions)} & {*options}
    reading = {"max_answer_tokens": 6, **{name: options.pop(name) for name in names}}
    chosen = Options(ReaderOptions(model, **reading), rows=rows, **options)
    plan = make_plan(open_source(data, document=document), rows, chosen.on_bad)
    return answer_file(plan, out, chosen)
