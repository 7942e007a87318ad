"""Read tables of records: Parquet, Arrow, pandas, and datasets on the hub."""

from collections.abc import Collection, Iterator
from typing import Any, Protocol

from loraqa.errors import InputError, in_a_line
from loraqa.squad.checks import Place
from loraqa.squad.columns import check_columns
from loraqa.squad.intake import Intake
from loraqa.squad.records import read_record, rows_of_columns


def read_parquet(data: bytes, source: str, intake: Intake) -> None:
    """Pass every record to `intake`; its place is its row number, counted from 0."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
        records = _records(table)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = in_a_line(error)
        raise InputError(f"{source} is not a readable Parquet file ({reason}).") from None
    _read_records(table.column_names, records, source, intake)


def read_arrow(data: bytes, source: str, intake: Intake) -> None:
    """Pass every record of an Arrow file or stream to `intake`; places as in `read_parquet`."""
    import pyarrow

    try:
        if data.startswith(b"ARROW1"):
            table = pyarrow.ipc.open_file(pyarrow.BufferReader(data)).read_all()
        else:
            table = pyarrow.ipc.open_stream(pyarrow.BufferReader(data)).read_all()
        records = _records(table)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{source} is not a readable Arrow file ({in_a_line(error)}).") from None
    _read_records(table.column_names, records, source, intake)


def _records(table: Any) -> list[dict[str, Any]]:
    """Return the rows of an Arrow table.

    Offsets in a damaged file may point anywhere, and following them would end the process.

    Raises:
        ArrowInvalid: the table is damaged.
    """
    table.validate(full=True)
    records: list[dict[str, Any]] = table.to_pylist()
    return records


class Frame(Protocol):
    """A pandas DataFrame."""

    columns: Any

    def to_dict(self, orient: Any) -> Any: ...


class Dataset(Protocol):
    """One split of a data set of `datasets`."""

    column_names: Any

    def __iter__(self) -> Iterator[Any]: ...

    def to_list(self) -> list[Any]: ...


class ArrowStream(Protocol):
    """A table of Arrow, polars and others."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any: ...


Table = list[dict[str, Any]] | dict[str, list[Any]] | Frame | Dataset | ArrowStream


def read_table(table: Table, source: str, intake: Intake) -> None:
    """Pass every record of a table in memory to `intake`; places as in `read_parquet`."""
    rows = _as_rows(table)
    check_columns(_column_names(rows), source)
    records = rows.to_dict("records") if hasattr(rows, "columns") else rows
    for number, record in enumerate(records):
        read_record(_plain(record), Place(record=f"row {number}"), intake)


def _as_rows(table: Any) -> Any:
    """Return the rows of a dict of lists, and of tables that offer themselves as Arrow's."""
    if isinstance(table, dict):
        return rows_of_columns(table)
    if hasattr(table, "__arrow_c_stream__") and not hasattr(table, "iterrows"):
        import pyarrow

        return pyarrow.table(table).to_pylist()
    return table


def _column_names(table: Any) -> list[Any]:
    """Return the columns of a table; those of a list are the keys of all its dicts."""
    if isinstance(table, list):
        return list(dict.fromkeys(key for row in table if isinstance(row, dict) for key in row))
    if hasattr(table, "columns") and hasattr(table, "to_dict"):
        return list(table.columns)
    if hasattr(table, "column_names") and hasattr(table, "to_list"):
        return list(table.column_names)
    raise InputError(
        "Only a path, a hub name, a list of dicts, a dict of lists, a pandas DataFrame, an "
        "Arrow table or one split of a data set can be read; give one of these."
    )


def _plain(value: Any) -> Any:
    """Return values of NumPy and pandas, at any depth, as plain Python values."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    return _plain(value.tolist()) if hasattr(value, "tolist") else value


def read_hub(name: str, split: str, intake: Intake) -> None:
    """Pass every record of a split of a dataset on the Hugging Face hub to `intake`.

    Raises:
        InputError: the split cannot be downloaded or read; the message is one sentence.
    """
    try:
        columns, records = _download(name, split)
    # The hub's libraries raise many unrelated types of errors.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"Split {split!r} of {name!r} cannot be read from the Hugging Face hub ({reason}); "
            "check the name and the connection, set HF_HUB_OFFLINE=1 to use an earlier download, "
            "or give a local file (JSON, JSON Lines, CSV or Parquet)."
        ) from error
    _read_records(columns, records, name, intake)


def _download(name: str, split: str) -> tuple[list[str], list[dict[str, Any]]]:
    import datasets
    from huggingface_hub import HfApi, constants

    if not constants.HF_HUB_OFFLINE:
        # Without a network this fails at once; `load_dataset` would retry for half a minute.
        HfApi().dataset_info(name, timeout=10)
    data = datasets.load_dataset(name, split=split)
    return data.column_names, data.to_list()


def _read_records(
    columns: Collection[str], records: list[dict[str, Any]], source: str, intake: Intake
) -> None:
    check_columns(columns, source)
    for number, record in enumerate(records):
        read_record(record, Place(record=f"row {number}"), intake)
