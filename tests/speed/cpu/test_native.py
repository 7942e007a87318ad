"""C kernels are used where a compiler is, share PyTorch's threads, and are left out if wrong."""

import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import needs_compiler, tiny_model

from loraqa.model.memory import LackOfMemoryError, explaining_lack_of_memory
from loraqa.model.runner import TreeRunner
from loraqa.prompt.batch import TreeBatch, TreeSpan
from loraqa.speed.cpu import native
from loraqa.speed.cpu.rows import CompiledRowAttention
from loraqa.speed.cpu.trees import CompiledTreeAttention
from loraqa.speed.trial import fastest

OTHERS = ("compiled-trees", "attention-by-products", "grouped-rows", "prepacked-weights")


def compiled(dtype: str = "float32") -> tuple[bool, bool]:
    """Return whether a tiny model gets the kernels for GELU and for rows."""
    _, names = fastest(TreeRunner(tiny_model("gpt2", dtype)), ["answering"], OTHERS)
    return "compiled-gelu" in names, "compiled-rows" in names


# Prints the libraries of a process that has run a kernel.
LIBRARIES = """
from pathlib import Path
import torch
from loraqa.speed.cpu.gelu import CompiledGelu

CompiledGelu(torch.float32)(torch.ones(10**6))
print(Path("/proc/self/maps").read_text())
"""


@needs_compiler
def test_there_is_one_openmp() -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("the system does not list the libraries of a process")
    # In a process of its own, because other tests load libraries with an OpenMP of theirs.
    command = [sys.executable, "-c", LIBRARIES]
    maps = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    loaded = {line.split()[-1] for line in maps.splitlines() if ".so" in line}
    names = ("libgomp", "libiomp", "libomp")
    assert len([path for path in loaded if Path(path).name.startswith(names)]) == 1


@needs_compiler
@pytest.mark.usefixtures("recompiled")
@pytest.mark.parametrize("mode", [torch.no_grad(), torch.inference_mode()])
def test_kernels_are_used_whatever_the_callers_mode(
    mode: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with mode, caplog.at_level(logging.INFO, "loraqa"):
        assert compiled() == (True, True)
    assert not caplog.messages


@needs_compiler
@pytest.mark.usefixtures("recompiled")
def test_what_a_killed_compilation_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have kept its library, so that nothing is compiled again."""
    assert compiled() == (True, True)
    native._library.cache_clear()
    (tmp_path / ".loraqa-unfinished-x").mkdir()
    (tmp_path / ".loraqa-unfinished-x" / "gelu.o").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert compiled() == (True, True)
    assert list(tmp_path.iterdir()) == []


@needs_compiler
@pytest.mark.usefixtures("recompiled")
def test_compiled_kernels_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAQA_CACHE", str(tmp_path / "one"))
    commands: list[list[str]] = []
    run = native._run

    def noted(command: list[str], folder: Path) -> None:
        commands.append(command)
        run(command, folder)

    monkeypatch.setattr(native, "_run", noted)

    def compiles() -> bool:
        native._library.cache_clear()
        commands.clear()
        y = torch.empty(1)
        native.call("gelu", torch.float32, torch.ones(1), y, 1)
        assert y.item() == pytest.approx(0.841192)
        return bool(commands)

    assert compiles()
    assert not compiles()
    (kept,) = (tmp_path / "one" / "kernels").iterdir()

    damaged = tmp_path / "other" / "kernels" / kept.name
    damaged.parent.mkdir(parents=True)
    monkeypatch.setenv("LORAQA_CACHE", str(tmp_path / "other"))
    # A library that is cut would end the process with a bus error when it is loaded or called.
    for length in (7, 4096, kept.stat().st_size // 2, kept.stat().st_size - 1):
        damaged.write_bytes(kept.read_bytes()[:length])
        assert compiles()
        (remade,) = damaged.parent.iterdir()
        assert remade.stat().st_size > length
        remade.unlink()
    assert compiles()

    monkeypatch.setattr(native, "_processor", lambda: ["another"])
    assert compiles()
    assert not compiles()
    # No folder can be made there.
    monkeypatch.setenv("LORAQA_CACHE", str(kept))
    assert compiles()
    assert compiles()


@needs_compiler
@pytest.mark.usefixtures("recompiled")
def test_kernels_are_compiled_where_the_cache_may_not_run_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAQA_CACHE", str(tmp_path))
    load = native.CDLL

    def refusing(path: str) -> Any:
        if path.startswith(str(tmp_path)):
            raise OSError(f"{path}: failed to map segment from shared object")
        return load(path)

    monkeypatch.setattr(native, "CDLL", refusing)
    for _ in range(2):
        native._library.cache_clear()
        y = torch.empty(1)
        native.call("gelu", torch.float32, torch.ones(1), y, 1)
        assert y.item() == pytest.approx(0.841192)


def test_processors_are_told_apart_by_what_they_can_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x86 = "model name\t: AMD EPYC\ncpu MHz\t\t: 2445.4\nflags\t\t: fma avx avx2\n"
    arm = "BogoMIPS\t: 243.75\nFeatures\t: fp asimd\nCPU part\t: 0xd40\n"
    monkeypatch.setattr(native, "_CPUINFO", tmp_path / "cpuinfo")

    def told(text: str) -> list[str]:
        (tmp_path / "cpuinfo").write_text(text)
        return native._processor()

    assert told(x86) == told(x86.replace("2445.4", "1500.0") + "\n" + x86)
    assert told(arm) == told(arm.replace("243.75", "100.00"))
    different = [x86, x86.replace("avx2", "avx2 avx512f"), arm, arm.replace("0xd40", "0xd4f"), ""]
    assert len({tuple(told(text)) for text in different}) == len(different)


@needs_compiler
@pytest.mark.parametrize(
    "wrong",
    [
        torch.ones(4, dtype=torch.float64),
        torch.ones(4).bfloat16(),
        torch.ones(4, 4).t(),
        torch.ones(4, device="meta"),
    ],
)
def test_what_a_kernel_would_misread_is_refused(wrong: torch.Tensor) -> None:
    y = torch.ones(4)
    with pytest.raises(ValueError, match=r"^gelu takes contiguous tensors of torch.float32"):
        native.call("gelu", torch.float32, wrong, y, 4)


@pytest.mark.usefixtures("recompiled")
@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        (
            "no-such-compiler",
            "there is no C compiler 'no-such-compiler' here; install one, such as gcc",
        ),
        pytest.param("cc --no-such-option", "the C compiler 'cc' fails (", marks=needs_compiler),
    ],
)
def test_without_a_compiler_the_plain_operations_are_used(
    compiler: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.INFO, "loraqa"):
        assert compiled() == (False, False)
    for name, message in zip(("compiled-gelu", "compiled-rows"), caplog.messages, strict=True):
        assert message.startswith(f"The acceleration {name} is not used, because {reason}")


@needs_compiler
@pytest.mark.usefixtures("recompiled")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("file", "right", "wrong", "still"),
    [
        ("gelu.c", "return x * gate", "return 1.02f * x * gate", (False, True)),
        ("gelu.c", "gate + x * small", "gate - x * small", (False, True)),
        ("rows.c", "trunk_starts[row]) * size", "0) * size", (True, False)),
        ("rows.c", "own_starts[row]) * size", "0) * size", (True, False)),
        ("rows.c", "nth * key_heads / heads", "0", (True, False)),
        ("numbers.h", "sum * scale", "sum", (False, False)),
    ],
)
def test_kernels_that_compute_something_else_are_left_out(
    file: str,
    right: str,
    wrong: str,
    still: tuple[bool, bool],
    dtype: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change_sources(file, right, wrong, tmp_path / "changed", monkeypatch)
    assert compiled(dtype) == still


def change_sources(
    file: str, right: str, wrong: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compile changed kernels from now on."""
    shutil.copytree(native._SOURCES, folder)
    source = (folder / file).read_text()
    assert right in source
    (folder / file).write_text(source.replace(right, wrong))
    monkeypatch.setattr(native, "_SOURCES", folder)


def attend_rows() -> torch.Tensor:
    states = torch.ones(1, 3, 4), torch.ones(1, 3, 4)
    rows = CompiledRowAttention([TreeSpan(0, 2, (1,))], {0: states})
    rows.add_token()
    return rows.attend(0, *torch.ones(3, 1, 1, 1, 4), scaling=1.0)


def attend_trees() -> torch.Tensor:
    none = torch.empty(0, dtype=torch.long)
    batch = TreeBatch(none, none, (TreeSpan(0, 2, (1,)),), none, none, none)
    attention = CompiledTreeAttention(batch, torch.device("cpu"))
    return attention.attend(0, *torch.ones(3, 1, 1, 3, 4, requires_grad=True), scaling=1.0)


@needs_compiler
@pytest.mark.usefixtures("recompiled")
@pytest.mark.parametrize(
    ("file", "attend", "refused"),
    [
        ("rows.c", attend_rows, 0),
        *(("trees.c", attend_trees, nth) for nth in range(4)),
    ],
)
def test_a_lack_of_memory_is_an_error(
    file: str,
    attend: Callable[[], torch.Tensor],
    refused: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The forward pass over a tree asks for memory three times, then the backward pass does."""
    change_sources(file, "malloc(", "allocate(", tmp_path / "changed", monkeypatch)
    header = tmp_path / "changed" / "numbers.h"
    refusing = f"return asked++ == {refused} ? NULL : malloc(size);"
    allocate = f"static inline void *allocate(size_t size) {{ static int asked; {refusing} }}"
    header.write_text(f"#include <stdlib.h>\n{allocate}\n{header.read_text()}")
    with (
        pytest.raises(LackOfMemoryError, match=r"^Out of memory here \(no memory for attend_"),
        explaining_lack_of_memory("here", "take a smaller model"),
    ):
        attend().sum().backward()
    # Where there is memory again, the same kernels work.
    result = attend()
    assert result.eq(1).all()
