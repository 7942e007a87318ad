"""Read and check question-answering data of any supported format, from a file or the hub."""

import gzip
import json
import logging
import re
import zlib
from pathlib import Path
from typing import Any, Literal

from loraqa.errors import InputError, counted, some_of
from loraqa.garbage import no_garbage
from loraqa.squad.checks import listing
from loraqa.squad.dataset import QADataset
from loraqa.squad.delimited import read_csv
from loraqa.squad.intake import Intake
from loraqa.squad.official import read_articles, read_official, read_paragraphs
from loraqa.squad.records import is_record, read_jsonl, read_rows, rows_of_columns
from loraqa.squad.tables import Table, read_arrow, read_hub, read_parquet, read_table
from loraqa.squad.text import BYTE_ORDER_MARK, decode, explain_json_error, read_bytes

logger = logging.getLogger("loraqa")

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:.+)?")
_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".gz")


def read_passages(
    source: str | Path | Table,
    *,
    on_bad: Literal["stop", "skip"] = "stop",
    split: str = "validation",
) -> QADataset:
    """Read question-answering data of any format, from a file, a table or the hub.

    Args:
        source: a file (`data.json:train` is one of its splits), a folder written by `datasets`, a
            hub name such as `rajpurkar/squad` or `rajpurkar/squad:train`, a list of dicts, a dict
            of lists, a pandas DataFrame, or a split of a data set. Reading a file never uses
            the network.
        on_bad: "stop" refuses data with problems; "skip" leaves out the parts with problems,
            counts them and logs the problems.
        split: split to read if the hub name does not contain one.

    Raises:
        InputError: nothing can be read, or the data has problems and `on_bad` is "stop"; the
            message lists the problems.
    """
    intake = Intake()
    if not isinstance(source, str | Path):
        read_table(source, "the table", intake)
        return _conclude(intake, "the table", on_bad)
    if _is_hub_name(source):
        name, _, named_split = str(source).partition(":")
        read_hub(name, named_split or split, intake)
    else:
        _read_path(*_path_and_split(source), intake)
    return _conclude(intake, str(source), on_bad)


def check_there(source: str | Path) -> None:
    """Raise `InputError` if `source` is neither a hub name nor an existing path."""
    path, _ = _path_and_split(source)
    if not _is_hub_name(source) and not path.exists():
        # Raises the error with its reason.
        read_bytes(path)


def _path_and_split(source: str | Path) -> tuple[Path, str]:
    """Return the path and the split of `data.json:train`; no split if there is none."""
    path, _, split = str(source).rpartition(":")
    if path and not Path(source).exists() and Path(path).exists():
        return Path(path), split
    return Path(source), ""


def _is_hub_name(source: str | Path) -> bool:
    path = Path(source)
    return (
        isinstance(source, str)
        and _HUB_NAME.fullmatch(source) is not None
        and path.suffix.lower() not in _SUFFIXES
        and not path.exists()
        and not _path_and_split(source)[1]
        and not Path(path.parts[0]).is_dir()
    )


def _read_path(path: Path, split: str, intake: Intake) -> None:
    if not path.is_dir():
        _read_file(path, split, intake)
        return
    folder = path / split
    if not (folder / "state.json").is_file():
        splits = sorted(state.parent.name for state in path.glob("*/state.json"))
        if splits:
            raise InputError(_explain_splits(path, splits))
        raise InputError(f"{folder} is a folder, but not one of a data set; name a file in it.")
    try:
        state = json.loads(read_bytes(folder / "state.json"))
        names = [str(file["filename"]) for file in state["_data_files"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{folder / 'state.json'} is damaged; save the data set again.") from None
    for name in names:
        read_arrow(read_bytes(folder / name), str(folder / name), intake)


@no_garbage()
def _read_file(path: Path, split: str, intake: Intake) -> None:
    """Read a file; its content decides the format, its suffix only where the content does not."""
    data, suffix = read_bytes(path), path.suffix.lower()
    if data.startswith(b"\x1f\x8b"):
        data, suffix = _decompressed(data, path), Path(path.stem).suffix.lower()
    if data.startswith(b"PAR1") or suffix == ".parquet":
        read_parquet(data, str(path), intake)
        return
    if data.startswith((b"ARROW1", b"\xff\xff\xff\xff")) or suffix == ".arrow":
        read_arrow(data, str(path), intake)
        return
    text = decode(data, str(path)).removeprefix(BYTE_ORDER_MARK)
    if suffix in (".jsonl", ".ndjson"):
        read_jsonl(text, intake)
    elif suffix not in (".csv", ".tsv") and (
        suffix == ".json" or text.lstrip().startswith(("{", "["))
    ):
        _read_json(text, str(path), split, intake)
    else:
        read_csv(text, str(path), intake)


def _decompressed(data: bytes, path: Path) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        raise InputError(f"{path} is a damaged gzip file; compress it again.") from None


def _read_json(text: str, source: str, split: str, intake: Intake) -> None:
    """Read JSON of any shape, or JSON Lines from a file without a JSON Lines suffix."""
    try:
        document, end = json.JSONDecoder().raw_decode(text, _end_of_space(text, 0))
        end = _end_of_space(text, end)
        if end < len(text) and not (is_record(document) and "data" not in document):
            raise json.JSONDecodeError("Extra data", text, end)
    except (ValueError, RecursionError) as error:
        where, reason = explain_json_error(error)
        raise InputError(f"{source}, {where}: {reason}.") from None
    if end < len(text):
        read_jsonl(text, intake)
    else:
        _read_document(document, source, split, intake)


def _read_document(document: Any, source: str, split: str, intake: Intake) -> None:
    """Read a parsed JSON file: official, rows, paragraphs, a row, or splits of these."""
    if isinstance(document, list):
        _read_list(document, "", intake)
    elif not isinstance(document, dict):
        raise InputError(
            f"{source} is neither a JSON object nor a list; SQuAD's JSON is an object with "
            "'version' and 'data', JSON Lines have one object per line."
        )
    elif "data" not in document and (_has(document, "paragraphs", "qas") or is_record(document)):
        _read_list(rows_of_columns(document) or [document], "", intake)
    elif "data" in document or not _splits(document):
        data = document.get("data")
        if isinstance(data, list) and (_are(data, "qas") or any(map(is_record, data))):
            _read_list(data, "data", intake)
        else:
            read_official(document, intake)
    elif split in document:
        _read_document(document[split], source, "", intake)
    else:
        raise InputError(_explain_splits(Path(source), _splits(document)))


def _read_list(items: list[Any], name: str, intake: Intake) -> None:
    """Read a list of articles, of paragraphs or of rows."""
    if _are(items, "paragraphs"):
        read_articles(items, name, intake)
    elif _are(items, "qas"):
        read_paragraphs(items, name, intake)
    else:
        read_rows(items, name, intake)


def _are(items: list[Any], *keys: str) -> bool:
    return any(_has(item, *keys) for item in items)


def _has(item: Any, *keys: str) -> bool:
    return isinstance(item, dict) and not item.keys().isdisjoint(keys)


def _splits(document: dict[str, Any]) -> list[str]:
    """Return the names of the splits: keys whose values are data themselves."""
    return [
        name
        for name, value in document.items()
        if (isinstance(value, list) and any(isinstance(row, dict) for row in value))
        or (isinstance(value, dict) and "data" in value)
    ]


def _explain_splits(path: Path, splits: list[str]) -> str:
    return f"{path} has the splits {some_of(splits)}; choose one, such as {path}:{splits[0]}."


def _end_of_space(text: str, start: int) -> int:
    return len(text) - len(text[start:].lstrip())


def _conclude(intake: Intake, source: str, on_bad: str) -> QADataset:
    if intake.problems and on_bad != "skip":
        raise InputError(
            f"{listing(source, intake.problems)}\n"
            "Correct them, or leave them out with --on-bad skip."
        )
    _log(intake, source)
    if not intake.order:
        raise InputError(f"{source} has no usable questions; correct it or name other data.")
    passages, known = intake.passages(), set(intake.order)
    unanswerable = any(not question.answerable for item in passages for question in item.questions)
    return QADataset(
        source=source,
        version=intake.version or ("2.0" if unanswerable else "1.1"),
        passages=passages,
        order=tuple(intake.order),
        repaired=intake.repaired,
        skipped=dict(+intake.skipped),
        unplaced=tuple(each for each in intake.unplaced if each.place.id in known),
        made_ids=len(intake.made_ids & known),
    )


def _log(intake: Intake, source: str) -> None:
    if intake.problems:
        logger.warning("%s", listing(source, intake.problems))
    if skipped := ", ".join(f"{name}: {count}" for name, count in (+intake.skipped).items()):
        logger.warning("%s: left out %s.", source, skipped)
    if intake.repaired:
        logger.warning(
            "%s: answers with a corrected offset or look-alike characters: %d.",
            source,
            intake.repaired,
        )
    if intake.made_ids:
        made = counted(len(intake.made_ids), "question")
        logger.warning(f"{source}: {made} without an id; ids are made from the content.")
