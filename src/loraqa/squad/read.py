"""Read and check question-answering data of any supported format, from a file or the hub."""

import gzip
import json
import logging
import re
import zlib
from pathlib import Path
from typing import Literal

from loraqa.errors import InputError, counted
from loraqa.garbage import no_garbage
from loraqa.squad.checks import listing
from loraqa.squad.dataset import QADataset
from loraqa.squad.delimited import read_csv
from loraqa.squad.documents import explain_splits, read_json, read_jsonl
from loraqa.squad.intake import Intake
from loraqa.squad.tables import Table, read_arrow, read_hub, read_parquet, read_table
from loraqa.squad.text import BYTE_ORDER_MARK, decode, read_bytes

logger = logging.getLogger("loraqa")

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:.+)?")
_JSON = (".json", ".jsonl", ".ndjson")
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
            of lists, a DataFrame, an Arrow table, or a split of a data set. Reading a file never
            uses the network.
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
            raise InputError(explain_splits(path, splits))
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
    if suffix in (".jsonl", ".ndjson") and not text.lstrip().startswith("["):
        read_jsonl(text, intake)
    elif suffix not in (".csv", ".tsv") and (
        suffix in _JSON or text.lstrip().startswith(("{", "["))
    ):
        read_json(text, str(path), split, intake)
    else:
        read_csv(text, str(path), intake)


def _decompressed(data: bytes, path: Path) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        raise InputError(f"{path} is a damaged gzip file; compress it again.") from None


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
    without = {q.id for passage in passages for q in passage.questions if not q.answerable}
    unanswerable = next((id for id in intake.order if id in without), None)
    return QADataset(
        source=source,
        version=intake.version or ("2.0" if unanswerable else "1.1"),
        passages=passages,
        order=tuple(intake.order),
        repaired=intake.repaired,
        skipped=dict(+intake.skipped),
        unplaced=tuple(intake.unplaced),
        made_ids=len(intake.made_ids & known),
        unanswerable_at=None if unanswerable is None else intake.place_of(unanswerable),
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
