"""Checks of the paths that a user gave."""

from pathlib import Path

from loraqa.errors import InputError


def check_order(run: Path, data: str) -> None:
    """Raise `InputError` if the data were given as the run, and the run as the data."""
    if run.is_file() and Path(data).is_dir():
        raise InputError(
            f"{run} is a file and {data} a folder; give the folder of the run first, and the file "
            "with --data."
        )


def check_not_input(out: Path, data: str, option: str = "--out") -> None:
    """Raise `InputError` if writing `out` would overwrite the data."""
    if out.exists() and Path(data).exists() and out.samefile(data):
        raise InputError(f"{option} {out} is the data file itself; name another file.")


def place_for(source: Path, name: str) -> Path:
    """Return a path inside a run; else in the working directory, not in an adapter or model."""
    return (source if is_run(source) else Path()) / name


def is_run(source: Path) -> bool:
    """Return whether a path is the folder of a run, and not an adapter or a model."""
    from loraqa.adapter.find import find_adapter

    return find_adapter(source) == source / "adapter"
