"""Kernels in C are there where a compiler is, share PyTorch's threads, and give way where wrong."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import needs_compiler, tiny_model
from torch.nn.functional import gelu

from loraqa.model import choose_rows, native
from loraqa.model.gelu import TanhGelu, compiled_gelu, fuse_gelu


@pytest.fixture
def anew() -> Iterator[None]:
    """What is known of the compiler is forgotten, before and after."""
    forgetting = (native._passes.cache_clear, native._library.cache_clear)
    for forget in forgetting:
        forget()
    yield
    for forget in forgetting:
        forget()


@needs_compiler
def test_there_is_one_openmp() -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the system does not tell what is loaded")
    TanhGelu()(torch.ones(10**6))
    loaded = {line.split()[-1] for line in maps.read_text().splitlines() if ".so" in line}
    names = ("libgomp", "libiomp", "libomp")
    assert len([path for path in loaded if Path(path).name.startswith(names)]) == 1


@needs_compiler
@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("mode", [torch.no_grad(), torch.inference_mode(), torch.device("meta")])
def test_it_works_wherever_it_is_first_asked(mode: Any, caplog: pytest.LogCaptureFixture) -> None:
    x = torch.ones(3)
    with mode, caplog.at_level("INFO", "loraqa"):
        TanhGelu()(x)
        assert choose_rows.compiles(x.device, x.dtype)
    assert not caplog.messages


@needs_compiler
@pytest.mark.usefixtures("anew")
def test_what_was_compiled_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAQA_CACHE", str(tmp_path / "one"))
    commands: list[list[str]] = []
    run = native._run

    def noted(command: list[str], folder: Path) -> None:
        commands.append(command)
        run(command, folder)

    monkeypatch.setattr(native, "_run", noted)

    def compiled() -> bool:
        native._library.cache_clear()
        commands.clear()
        y = torch.empty(1)
        native.call("gelu", torch.float32, torch.ones(1), y, 1)
        assert y.item() == pytest.approx(0.841192)
        return bool(commands)

    assert compiled()
    assert not compiled()
    (kept,) = (tmp_path / "one" / "kernels").iterdir()

    damaged = tmp_path / "other" / "kernels" / kept.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"damaged")
    monkeypatch.setenv("LORAQA_CACHE", str(tmp_path / "other"))
    assert compiled()
    assert damaged.read_bytes() != b"damaged"

    monkeypatch.setattr(native, "_processor", lambda: ["another"])
    assert compiled()
    assert not compiled()
    # No folder can be made there.
    monkeypatch.setenv("LORAQA_CACHE", str(kept))
    assert compiled()
    assert compiled()


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


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler", "there is no no-such-compiler; with a C compiler (such as gcc)"),
        ("cc --no-such-option", "cc says: "),
    ],
)
def test_without_a_compiler_pytorchs_operations_are_there(
    compiler: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CC", compiler)
    x = torch.linspace(-5, 5, 100)
    with caplog.at_level("INFO", "loraqa"):
        for _ in range(2):
            assert torch.equal(TanhGelu()(x), gelu(x, approximate="tanh"))
    (message,) = caplog.messages
    assert message.startswith(f"GELU by PyTorch's slower operations: {reason}")


@needs_compiler
@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
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
def test_kernels_that_compute_something_else_are_not_taken(
    file: str,
    right: str,
    wrong: str,
    still: tuple[bool, bool],
    dtype: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(native._SOURCES, changed)
    source = (changed / file).read_text()
    assert right in source
    (changed / file).write_text(source.replace(right, wrong))
    monkeypatch.setattr(native, "_SOURCES", changed)
    model = tiny_model("gpt2", str(dtype).removeprefix("torch."))
    fuse_gelu(model)
    assert (compiled_gelu(model), choose_rows.compiles(model.device, dtype)) == still
