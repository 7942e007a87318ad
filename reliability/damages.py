"""Damages of files: flipped bits, cuts, zeros, other content, or no file at all."""

import errno
import random
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path

from reliability.trials import Damage
from reliability.works import Work


def damages(
    works: Sequence[tuple[str, Work, Sequence[str]]], count: int, seed: int
) -> Iterator[Damage]:
    """Yield `count` damages, spread evenly over files; first each kind once for each file.

    Args:
        works: a name for the table, a work, and the files of its start that are damaged.
        count: the number of damages.
        seed: decides which bits and bytes are hit.
    """
    each = [
        _of_file(of, work, path, random.Random(f"{seed} {of} {path}"))
        for of, work, paths in works
        for path in paths
    ]
    return islice((next(kinds) for kinds in cycle(each)), count)


def _of_file(of: str, work: Work, path: str, chance: random.Random) -> Iterator[Damage]:
    content = work.start[path] or b""
    make = partial(Damage, work, of, path)
    yield make("flipped", partial(_flip, bit=chance.randrange(max(8 * len(content), 1))))
    yield make("deleted", Path.unlink)
    yield make("emptied", partial(_write, content=b""))
    yield make("zeroed", partial(_write, content=bytes(len(content))))
    yield make("cut to half", partial(_write, content=content[: len(content) // 2]))
    yield make("not allowed", _leave, errno.EACCES)
    yield make("failing", _leave, errno.EIO)
    yield make("made a folder", _make_folder)
    yield make("made a link to nothing", _make_link)
    yield make("replaced", partial(_write, content=_another(work, path, content, chance)))
    yield make("made noise", partial(_write, content=chance.randbytes(len(content))))
    while True:
        place = chance.randrange(max(len(content), 1))
        length = chance.randint(1, 64)
        bit = chance.randrange(max(8 * len(content), 1))
        start, end = content[:place], content[place + length :]
        yield make(f"flipped in bit {bit}", partial(_flip, bit=bit))
        yield make(f"cut to {place} bytes", partial(_write, content=start))
        yield make(
            f"zeroed at {place}",
            partial(_write, content=(start + bytes(length) + end)[: len(content)]),
        )
        yield make(f"flipped in bit {bit}, again", partial(_flip, bit=len(content) * 8 - 1 - bit))
        yield make(f"without {length} bytes at {place}", partial(_write, content=start + end))
        yield make(f"longer by {length} bytes", partial(_write, content=content + bytes(length)))


def _another(work: Work, path: str, content: bytes, chance: random.Random) -> bytes:
    """Return the content of another file of the same ending, if there is one."""
    others = [c for name, c in work.start.items() if c and c != content and name != path]
    alike = [
        c
        for name, c in work.start.items()
        if c in others and Path(name).suffix == Path(path).suffix
    ]
    return chance.choice(alike or others or [b"another file"])


def _flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _leave(path: Path) -> None:
    """Leave the file as it is."""


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _make_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")
