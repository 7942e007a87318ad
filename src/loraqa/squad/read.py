"""Read and check question-answering data of any supported format, from a file or the hub."""

import json
import logging
import re
from pathlib import Path
from typing import Any, Literal

from loraqa.errors import InputError
from loraqa.garbage import no_garbage
from loraqa.squad.checks import Place
from loraqa.squad.dataset import QADataset
from loraqa.squad.intake import Intake
from loraqa.squad.official import read_official
from loraqa.squad.records import read_csv, read_hub, read_jsonl, read_parquet
from loraqa.squad.text import BYTE_ORDER_MARK, decode, explain_json_error, read_bytes

logger = logging.getLogger("loraqa")

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:.+)?")
_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")


def read_passages(
    source: str | Path, *, on_bad: Literal["stop", "skip"] = "stop", split: str = "validation"
) -> QADataset:
    """Read official SQuAD JSON (v1.1, v2.0), JSON Lines, CSV, Parquet or a dataset on the hub.

    Args:
        source: a file, or a hub name such as `rajpurkar/squad` or `rajpurkar/squad:train`. Reading
            a file never uses the network.
        on_bad: "stop" refuses data with problems; "skip" leaves out the parts with problems,
            counts them and logs the problems.
        split: split to read if the hub name does not contain one.

    Raises:
        InputError: nothing can be read, or the data has problems and `on_bad` is "stop"; the
            message lists the problems.
    """
    intake = Intake()
    if _is_hub_name(source):
        name, _, named_split = str(source).partition(":")
        read_hub(name, named_split or split, intake)
    else:
        _read_file(Path(source), intake)
    return _conclude(intake, str(source), on_bad)


def check_there(source: str | Path) -> None:
    """Raise `InputError` if `source` is neither a hub name nor an existing path."""
    if not _is_hub_name(source) and not Path(source).exists():
        # Raises the error with its reason.
        read_bytes(Path(source))


def _is_hub_name(source: str | Path) -> bool:
    path = Path(source)
    return (
        isinstance(source, str)
        and _HUB_NAME.fullmatch(source) is not None
        and path.suffix.lower() not in _SUFFIXES
        and not path.exists()
        and not Path(path.parts[0]).is_dir()
    )


@no_garbage()
def _read_file(path: Path, intake: Intake) -> None:
    """Read a file; its content decides the format, its suffix only where the content does not."""
    data, suffix = read_bytes(path), path.suffix.lower()
    if data.startswith(b"PAR1") or suffix == ".parquet":
        read_parquet(data, str(path), intake)
        return
    text = decode(data, str(path))
    if text.startswith(BYTE_ORDER_MARK):
        intake.report(Place(), "starts with a byte order mark (BOM); save it as UTF-8 without one")
        text = text.removeprefix(BYTE_ORDER_MARK)
    if suffix in (".jsonl", ".ndjson"):
        read_jsonl(text, intake)
    elif suffix != ".csv" and (suffix == ".json" or text.lstrip().startswith("{")):
        _read_json(text, str(path), intake)
    else:
        read_csv(text, str(path), intake)


def _read_json(text: str, source: str, intake: Intake) -> None:
    """Read official JSON, or JSON Lines from a file without a JSON Lines suffix."""
    try:
        document, end = json.JSONDecoder().raw_decode(text, _end_of_space(text, 0))
        end = _end_of_space(text, end)
        if end < len(text) and not _is_record(document):
            raise json.JSONDecodeError("Extra data", text, end)
    except (ValueError, RecursionError) as error:
        where, reason = explain_json_error(error)
        raise InputError(f"{source}, {where}: {reason}.") from None
    if _is_record(document):
        read_jsonl(text, intake)
    elif isinstance(document, dict):
        read_official(document, intake)
    else:
        raise InputError(
            f"{source} is not a JSON object at the top level; SQuAD's JSON is an object with "
            "'version' and 'data', JSON Lines have one object per line."
        )


def _end_of_space(text: str, start: int) -> int:
    return len(text) - len(text[start:].lstrip())


def _is_record(document: Any) -> bool:
    return isinstance(document, dict) and "data" not in document and "question" in document


def _conclude(intake: Intake, source: str, on_bad: str) -> QADataset:
    if intake.problems and on_bad != "skip":
        raise InputError(
            f"{intake.listing(source)}\nCorrect them, or leave them out with --on-bad skip."
        )
    _log(intake, source)
    if not intake.order:
        raise InputError(f"{source} has no usable questions; correct it or name other data.")
    passages = intake.passages()
    unanswerable = any(not question.answers for item in passages for question in item.questions)
    return QADataset(
        source=source,
        version=intake.version or ("2.0" if unanswerable else "1.1"),
        passages=passages,
        order=tuple(intake.order),
        repaired=intake.repaired,
        skipped=dict(+intake.skipped),
    )


def _log(intake: Intake, source: str) -> None:
    if intake.problems:
        logger.warning("%s", intake.listing(source))
    if skipped := ", ".join(f"{name}: {count}" for name, count in (+intake.skipped).items()):
        logger.warning("%s: left out %s.", source, skipped)
    if intake.repaired:
        logger.warning("%s: answers with a corrected offset: %d.", source, intake.repaired)
