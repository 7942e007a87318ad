"""C kernels are used where a compiler is, share PyTorch's threads, and are left out if wrong."""

import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import needs_compiler, tiny_model

from loraqa.model.runner import TreeRunner
from loraqa.speed.cpu import native
from loraqa.speed.cpu.gelu import CompiledGelu
from loraqa.speed.trial import fastest

OTHERS = ("compiled-trees", "attention-by-products", "grouped-rows", "prepacked-weights")


@pytest.fixture
def recompiled() -> Iterator[None]:
    """Forget the loaded kernels, before and after."""
    native._library.cache_clear()
    yield
    native._library.cache_clear()


def compiled(dtype: str = "float32") -> tuple[bool, bool]:
    """Return whether a tiny model gets the kernels for GELU and for rows."""
    _, names = fastest(TreeRunner(tiny_model("gpt2", dtype)), ["answering"], OTHERS)
    return "compiled-gelu" in names, "compiled-rows" in names


@needs_compiler
def test_there_is_one_openmp() -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the system does not list the libraries of a process")
    CompiledGelu(torch.float32)(torch.ones(10**6))
    loaded = {line.split()[-1] for line in maps.read_text().splitlines() if ".so" in line}
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
    changed = tmp_path / "changed"
    shutil.copytree(native._SOURCES, changed)
    source = (changed / file).read_text()
    assert right in source
    (changed / file).write_text(source.replace(right, wrong))
    monkeypatch.setattr(native, "_SOURCES", changed)
    assert compiled(dtype) == still
