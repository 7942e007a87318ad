"""Parquet, read and written some rows at a time."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from loraqa.batch.source import (
    Column,
    Position,
    Record,
    Reply,
    check_nothing_is_overwritten,
)
from loraqa.errors import InputError, in_a_line
from loraqa.squad.checks import Checks, Place
from loraqa.squad.columns import by_meaning, check_columns_to_answer, column

# How many rows are decoded at once.
_AT_ONCE = 64

# How many bytes of a column are read at once. By default all of a row group would be.
_BUFFER = 2**20

_TYPES = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}


class Parquet:
    """A Parquet file. What is written has its schema, with more columns."""

    suffixes: tuple[str, ...] = (".parquet",)
    start: Position = (0, 0)

    def __init__(self, path: Path, added: Mapping[str, Column], needed: Sequence[str]) -> None:
        self.path = path
        self._added = added
        with self._open() as file:
            self._schema = file.schema_arrow
        check_columns_to_answer(self._schema.names, needed, str(path))
        check_nothing_is_overwritten(self._schema.names, self._added, str(path))

    def records(self, position: Position, checks: Checks) -> Iterator[Record]:  # noqa: ARG002
        """Yield the rows from a position on; every row is a record."""
        group, begin = position
        with self._open() as file:
            groups = [file.metadata.row_group(each).num_rows for each in range(file.num_row_groups)]
            number = sum(groups[:group])
            for each in range(group, len(groups)):
                for row, record in enumerate(self._records_of(file, each, number)):
                    if each > group or row >= begin:
                        yield record
                number += groups[each]

    @contextmanager
    def writing(self, path: Path) -> Iterator["_Writer"]:
        """Write a file with the same columns and those that are added."""
        schema = self._schema
        for name, each in self._added.items():
            schema = schema.append(pyarrow.field(name, _TYPES[each.kind]))
        with pyarrow.parquet.ParquetWriter(path, schema) as file:
            yield _Writer(file, schema, self._added)

    def _records_of(self, file: Any, group: int, number: int) -> Iterator[Record]:
        """Yield the rows of a row group; `number` is that of the first one."""
        row = 0
        for batch in file.iter_batches(_AT_ONCE, row_groups=[group]):
            # Following the offsets of a damaged file could end the process.
            batch.validate(full=True)
            known = batch.select([name for name in batch.schema.names if column(name)])
            size = batch.nbytes // len(batch)
            for index, node in enumerate(known.to_pylist()):
                place = Place(record=f"row {number + row}")
                yield Record(place, (group, row), by_meaning(node), batch.slice(index, 1), size)
                row += 1

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with pyarrow.parquet.ParquetFile(
                self.path, pre_buffer=False, buffer_size=_BUFFER
            ) as file:
                yield file
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            reason = in_a_line(error)
            raise InputError(f"{self.path} is not a readable Parquet file ({reason}).") from None


class _Writer:
    def __init__(self, file: Any, schema: Any, added: Mapping[str, Column]) -> None:
        self._file, self._schema, self._added = file, schema, added

    def write(self, raws: Sequence[Any], replies: Sequence[Reply]) -> None:
        """Write a row group."""
        table = pyarrow.Table.from_batches(raws)
        more = [
            pyarrow.array(map(each.cell, replies), _TYPES[each.kind])
            for each in self._added.values()
        ]
        whole = pyarrow.Table.from_arrays([*table.columns, *more], schema=self._schema)
        self._file.write_table(whole.combine_chunks())
