"""GGUF files, the format of llama.cpp, as model folders in transformers' format.

A file holds weights, which may be quantised, the configuration and the tokenizer. transformers
reads it, but needs many times as long as for a folder. So a file is converted once, with weights in
float32, and the folder is kept in the cache. Importing this loads nothing large.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from filelock import FileLock

from loraqa.cache import find_kept, keep_folder
from loraqa.errors import InputError, LoraqaError, counted, in_a_line, some_of
from loraqa.files import (
    cache_folder,
    keep_newest,
    make_folder,
    sha256,
    temporary_folder,
    writing_a_tokenizer,
    writing_tensors,
)
from loraqa.model.causal import check_causal
from loraqa.model.quiet import no_bars, no_report

logger = logging.getLogger("loraqa")

ENDING = ".gguf"
_MAGIC = b"GGUF"
_PACKAGES = ("gguf", "accelerate")
_CACHE = "gguf"
# How many converted models stay: the ones used last.
_KEPT = 4
_ORIGIN = "the model that the file was made from, in transformers' format"
_OTHERWISE = f"take another quantisation of the model, such as Q8_0, or {_ORIGIN}"

# The folders that this process has found or made, by file, its time of change and its size.
# Checking a folder takes half a second for a gigabyte.
_FOUND: dict[tuple[Path, int, int], Path] = {}


def is_gguf(path: Path) -> bool:
    """Return whether a path is a file with the ending of GGUF files."""
    return path.suffix.lower() == ENDING and path.is_file()


def check_gguf(path: Path) -> None:
    """Raise `InputError` if a file does not begin as GGUF files do; this reads four bytes."""
    with path.open("rb") as file:
        magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        raise InputError(
            f"{path} is not a GGUF file, because it does not begin with {_MAGIC.decode()}; "
            "download it again, or give another model."
        )


def converted(path: Path) -> Path:
    """Return the folder of a GGUF file's model in transformers' format, converting it if need be.

    Several processes that need the same file wait for the first one to convert it.

    Raises:
        InputError: the file is cut or damaged, transformers cannot read it, it holds no tokenizer,
            a package is not installed, or the cache cannot be written.
        LackOfMemoryError: the model does not fit into memory.
    """
    status = path.stat()
    stamp = (path.absolute(), status.st_mtime_ns, status.st_size)
    folder = _FOUND.get(stamp)
    if folder is None or not folder.is_dir():
        folder = _FOUND[stamp] = _find_or_convert(path)
    return folder


def _find_or_convert(path: Path) -> Path:
    check_gguf(path)
    key = _key(path)
    folder = find_kept(_CACHE, key) or _convert_once(path, key)
    # The cache may be somebody else's.
    with suppress(OSError):
        folder.touch()
    keep_newest(folder.parent, "[0-9a-f]*", _KEPT)
    return folder


def _key(path: Path) -> str:
    """Return what a conversion depends on. Later versions of either may convert better."""
    parts = [sha256(path), version("transformers"), sha256(Path(__file__))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _convert_once(path: Path, key: str) -> Path:
    _check_packages(path)
    caches = cache_folder(_CACHE)
    try:
        make_folder(caches)
        with FileLock(caches / ".lock"):
            # Another process may have converted it until now.
            return find_kept(_CACHE, key) or keep_folder(_CACHE, key, partial(_convert, path))
    except OSError as error:
        raise InputError(
            f"{path} has to be converted, and nothing can be written to {caches} "
            f"({error.strerror or in_a_line(error)}); name another folder in LORAQA_CACHE."
        ) from error


def _check_packages(path: Path) -> None:
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(
            f"To read {path}, loraqa needs the package {' and '.join(missing)}; install it with "
            "`pip install -e '.[gguf]'`."
        )


def _convert(path: Path, folder: Path) -> None:
    """Write the model of a GGUF file to a folder in transformers' format."""
    logger.info(
        f"Converting {path} to transformers' format; later runs find it in {cache_folder(_CACHE)}."
    )
    from loraqa.model.memory import ADVICE_TO_LOADERS, explaining_lack_of_memory

    with (
        explaining_lack_of_memory(f"while {path} was converted", ADVICE_TO_LOADERS),
        temporary_folder() as alone,
        no_bars(),
        no_report(),
        redirect_stderr(StringIO()),
        _reading_once(),
    ):
        # transformers would read other files beside it, too.
        (alone / f"model{ENDING}").symlink_to(path.absolute())
        try:
            model, tokenizer = _load(path, alone, f"model{ENDING}")
        except InputError:
            # This says more exactly what is wrong, but reading a vocabulary takes seconds.
            _check_content(path, alone, f"model{ENDING}")
            raise
        with writing_tensors(folder):
            model.save_pretrained(folder)
        with writing_a_tokenizer(folder):
            tokenizer.save_pretrained(folder)


@contextmanager
def _reading_once() -> Iterator[None]:
    """Keep what the package gguf returns, because transformers asks for the same again and again.

    It parses the file for the configuration, for the weights and for the tokenizer, and lists the
    names of all tensors anew for each module of the model. With this a conversion takes less than
    half the time.
    """
    import gguf

    whole = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, function in whole.items():
            setattr(gguf, name, cache(function))
        yield
    finally:
        for name, function in whole.items():
            setattr(gguf, name, function)


def _check_content(path: Path, folder: Path, name: str) -> None:
    """Raise `InputError` if a file is cut, or its architecture, tokenizer or weights are no use."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    # A damaged file may raise any kind of error.
    except Exception as error:
        raise InputError(
            f"{path} is cut or damaged, or newer than the installed package gguf; compare its "
            f"size, {path.stat().st_size:,} bytes, with that where it came from, and download it "
            "again."
        ) from error
    if reader.get_field("split.count") is not None:
        raise InputError(
            f"{path} is one part of a model in several files; join them with llama.cpp's "
            "`llama-gguf-split --merge` first."
        )
    _check_architecture(path, folder, name)
    if reader.get_field("tokenizer.ggml.tokens") is None:
        raise InputError(
            f"{path} holds no tokenizer; take another file of the model, or {_ORIGIN}."
        )
    _check_quantisation(path, reader.tensors)


def _check_architecture(path: Path, folder: Path, name: str) -> None:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, gguf_file=name)
    except Exception as error:
        raise InputError(
            f"transformers cannot read {path} ({in_a_line(error)}); take another model, or "
            f"{_ORIGIN}."
        ) from error
    check_causal(str(path), config)


def _check_quantisation(path: Path, tensors: Any) -> None:
    from gguf import dequantize

    for tensor in {each.tensor_type: each for each in tensors}.values():
        try:
            dequantize(tensor.data[:1], tensor.tensor_type)
        except NotImplementedError:
            raise InputError(
                f"{path} has weights of the type {tensor.tensor_type.name}, which cannot be "
                f"unpacked; {_OTHERWISE}."
            ) from None


def _load(path: Path, folder: Path, name: str) -> tuple[Any, Any]:
    """Return model and tokenizer of the GGUF file `name` in `folder`; messages name `path`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from loraqa.model.memory import is_lack_of_memory

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=name,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            adapter_kwargs={"subfolder": ".no-adapter"},
        )
    except LoraqaError:
        raise
    except Exception as error:
        if is_lack_of_memory(error):
            raise
        raise InputError(
            f"transformers cannot read {path} ({in_a_line(error)}); {_OTHERWISE}."
        ) from error
    mismatched = {key for key, *_ in report["mismatched_keys"]}
    if missing := sorted(mismatched | report["missing_keys"]):
        raise InputError(
            f"{path} lacks {counted(len(missing), 'tensor')} that a {model.config.model_type} "
            f"model has in transformers, or has them in another size: {some_of(missing, 3)}; take "
            f"another file of the model, or {_ORIGIN}."
        )
    # transformers takes the model for a quantised one, and would not save it.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    return model, tokenizer
