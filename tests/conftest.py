"""Fixtures for all rooms."""

import gc
import importlib.util
import json
import logging
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings

# Tiny models gain nothing from threads, and lose much where other work keeps the cores busy. Torch
# reads this when it is first imported; processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from torch import Tensor

from loraqa.squad import Answer, Passage, Question

# Triton asks, when it is first imported, whether to interpret kernels; where there is a GPU they
# run on it (`test_cuda.py`).
INTERPRETS = importlib.util.find_spec("triton") is not None and not torch.cuda.is_available()
if INTERPRETS:
    os.environ["TRITON_INTERPRET"] = "1"
needs_interpreter = pytest.mark.skipif(
    not INTERPRETS, reason="no Triton here to interpret kernels, or a GPU to run them"
)

# How long an example takes says something about the machine's load, nothing about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Where kernels in C are to work; elsewhere nobody has tried.
COMPILES = sys.platform == "linux" and shutil.which("cc") is not None
needs_compiler = pytest.mark.skipif(not COMPILES, reason="no C compiler here, or not Linux")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update"
).split()

Call = Callable[..., tuple[int, str, str]]

SHARED = Path(__file__).resolve().parents[2] / "shared"

TOWN = "The old town lies on the river Aune. Its mill was built by Ruth Olen in 1203."


def town_passages(count: int) -> list[Passage]:
    """Return passages about a town with two questions each."""
    return [
        Passage(
            f"{TOWN} It has {number} gates.",
            (
                Question(f"a{number}", "Who built the mill?", (Answer("Ruth Olen", 59),)),
                Question(f"b{number}", "When?", (Answer("1203", 72),)),
            ),
        )
        for number in range(count)
    ]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare with the size of the whole tensor, because kernels sum in different orders.

    The error of a sum is relative to its terms, so a single number near 0 has no correct digits.
    """
    assert actual.shape == expected.shape
    with torch.no_grad():
        error = (actual.double() - expected.double()).norm()
        assert error <= tolerance * expected.double().norm()


@contextmanager
def full_disk(room: int = 1000) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Leave the user's cache alone, here and in the processes that tests start."""
    os.environ["LORAQA_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", autouse=True)
def notices_as_they_were() -> Iterator[None]:
    """Undo what the command line does to the logger, whose stream may be closed by then."""
    logger = logging.getLogger("loraqa")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


@pytest.fixture(scope="module", autouse=True)
def in_the_same_folder() -> Iterator[None]:
    """Fail where a test leaves the process in another folder: those after it would fail there."""
    here = Path.cwd()
    yield
    assert Path.cwd() == here


@pytest.fixture(scope="module")
def without_plots() -> Iterator[None]:
    """Leave the plots out of reports, for they take a third of a tiny training.

    `tests/report/` draws each of them, and `tests/demo/` looks for those of a training.
    """
    with patch("loraqa.report.plots.to_svg", lambda _: ""):
        yield


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command line in this process; return its exit status, output and errors."""

    import loraqa.cli

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        # The handlers of earlier calls write to streams that are closed.
        monkeypatch.setattr(logging.getLogger("loraqa"), "handlers", [])
        monkeypatch.setattr(sys, "argv", ["loraqa", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            loraqa.cli.main()
        # Frozen objects of earlier tests would never be collected.
        gc.unfreeze()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here to open pages (`apt-get install chromium`)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data that CONTRIBUTING.md describes; without it a test skips."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED} (see CONTRIBUTING.md)")
    return SHARED


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A byte-level tokenizer with a few merges and an end-of-text token, 300 ids at most."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["Context: the old town of the river. Question: who? Answer: the king"] * 3, trainer
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|endoftext|>",
                "bos_token": "<|endoftext|>",
                "model_max_length": 256,
            }
        )
    )
    return AutoTokenizer.from_pretrained(folder)


_TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
_TINY_ROTARY = {
    **_TINY,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 0,
    "bos_token_id": 0,
}


def tiny_config(kind: str) -> Any:
    """The configuration of a random model of two layers: gpt2, llama, qwen2, qwen3 or mistral."""
    import transformers

    if kind == "gpt2":
        return transformers.GPT2Config(
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
            vocab_size=300,
            eos_token_id=0,
            bos_token_id=0,
            initializer_range=0.2,
        )
    classes = {
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
        "mistral": transformers.MistralConfig,
    }
    # Larger weights than usual, so that random logits differ visibly.
    return classes[kind](**_TINY_ROTARY, initializer_range=0.2)


def tiny_model(kind: str, dtype: str = "float32") -> Any:
    """A random model of two layers in eval mode, the same at every call."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(kind), dtype=torch.float32)
    return model.to(getattr(torch, dtype)).eval()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A folder with a tiny random GPT-2 and its tokenizer, in transformers' layout."""
    folder = tmp_path_factory.mktemp("tiny-gpt2")
    tiny_model("gpt2").save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
