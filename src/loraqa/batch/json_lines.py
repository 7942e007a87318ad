"""JSON Lines, read and written line by line."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from loraqa.batch.lines import Lines
from loraqa.batch.source import (
    Column,
    Position,
    Record,
    Reply,
    added_cells,
    check_nothing_is_overwritten,
)
from loraqa.squad.checks import Checks, Place
from loraqa.squad.columns import by_meaning
from loraqa.squad.text import explain_json_error


class JsonLines:
    """A file with a JSON object on each line. What is written has the same text in each line."""

    suffixes: tuple[str, ...] = (".jsonl", ".ndjson", ".json")

    def __init__(self, path: Path, added: Mapping[str, Column]) -> None:
        self.path = path
        self._added = added
        self.start: Position = (0, 0)

    def records(self, position: Position, checks: Checks) -> Iterator[Record]:
        """Yield the objects from a position on."""
        with Lines(self.path, position) as lines:
            while True:
                at = lines.begin_record()
                line = next(lines, None)
                if line is None:
                    return
                if line.strip() and (record := self._record(line, at, checks)):
                    yield record

    @contextmanager
    def writing(self, path: Path) -> Iterator["_Writer"]:
        """Write a file with the same keys and those that are added."""
        with path.open("w", encoding="utf-8", newline="") as file:
            yield _Writer(file, self._added)

    def _record(self, line: str, at: Position, checks: Checks) -> Record | None:
        place = Place(record=f"line {at[1] + 1}")
        try:
            node = json.loads(line.rstrip())
        except (ValueError, RecursionError) as error:
            where, reason = explain_json_error(error, at[1] + 1)
            checks.report(Place(record=where), reason)
            return None
        if not checks.has_type(node, dict, place):
            return None
        check_nothing_is_overwritten(node, self._added, f"{self.path}, {place}:")
        try:
            return Record(place, at, by_meaning(node), line, len(line))
        except ValueError as error:
            checks.report(place, str(error))
            return None


class _Writer:
    def __init__(self, file: IO[str], added: Mapping[str, Column]) -> None:
        self._file, self._added = file, added

    def write(self, raws: Sequence[str], replies: Sequence[Reply]) -> None:
        """Write lines with more keys before their last brace."""
        for line, reply in zip(raws, replies, strict=True):
            more = dict(zip(self._added, added_cells(self._added, reply), strict=True))
            text = json.dumps(more, ensure_ascii=False).removeprefix("{")
            begun = line.rstrip().removesuffix("}").rstrip()
            comma = "" if begun.lstrip() == "{" else ", "
            self._file.write(f"{begun}{comma}{text}\n")
