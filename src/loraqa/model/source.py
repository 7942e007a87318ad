"""Where a base model comes from: a local folder, or a name on the hub.

Large libraries are imported only when something is loaded, so a wrong path is reported at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from loraqa.errors import InputError, LoraqaError, in_a_line
from loraqa.files import looks_like_a_path
from loraqa.prompt.segments import SegmentTokenizer

# Models that state no limit, such as those with ALiBi, get GPT-2's.
_DEFAULT_LIMIT = 1024
# Seconds to wait for an answer of the hub.
_HUB_TIMEOUT = 10.0
_CHOICE = (
    "a folder with config.json, model.safetensors and the tokenizer, or a model's name on the hub"
)


def load_tokenizer(source: str | Path, revision: str | None = None) -> tuple[SegmentTokenizer, Any]:
    """Load a base model's tokenizer, wrapped for prompts, and the model's configuration.

    Raises:
        InputError: as for `load_base`, or the tokenizer cannot encode prompts.
    """
    from transformers import AutoConfig, AutoTokenizer

    where = ModelSource(source, revision)
    return SegmentTokenizer.from_transformers(where.load(AutoTokenizer)), where.load(AutoConfig)


def position_limit(config: Any) -> int:
    """Return the longest input that a model of this configuration takes, in tokens."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else _DEFAULT_LIMIT


def choose_max_length(wanted: int | None, config: Any) -> int:
    """Return the longest path of a tree in tokens: `wanted`, else the model's limit.

    Raises:
        InputError: `wanted` is more than the model takes.
    """
    limit = position_limit(config)
    if wanted and wanted > limit:
        raise InputError(
            f"max_length is {wanted} tokens, but the model takes no more than {limit}; "
            "lower max_length."
        )
    return wanted or limit


class ModelSource:
    """A folder, or a name on the hub.

    Raises:
        InputError: the source is a path, but no model's folder.
    """

    def __init__(self, source: str | Path, revision: str | None = None) -> None:
        self.name = str(source)
        self.revision = revision
        folder = Path(source).expanduser()
        self.is_folder = folder.is_dir()
        if not self.name:
            raise InputError(f"The model's name is empty; give {_CHOICE}.")
        if self.is_folder and not (folder / "config.json").exists():
            raise InputError(f"The folder {self.name} has no config.json; give {_CHOICE}.")
        if not self.is_folder and looks_like_a_path(self.name):
            raise InputError(f"There is no folder {self.name}; give {_CHOICE}.")

    def load(self, kind: Any, **options: Any) -> Any:
        """Call `kind.from_pretrained`. Raises `InputError` with one sentence if that fails."""
        try:
            with no_bars() if self.is_folder else nullcontext():
                return kind.from_pretrained(
                    str(Path(self.name).expanduser()) if self.is_folder else self.name,
                    revision=self.revision or "main",
                    local_files_only=not self._hub_answers,
                    trust_remote_code=False,
                    **options,
                )
        except (LoraqaError, MemoryError):
            raise
        # A damaged file may raise any kind of error.
        except Exception as error:
            raise InputError(self._explain(error)) from error

    @cached_property
    def _hub_answers(self) -> bool:
        """Whether the hub is reachable. If it is not, transformers would retry for minutes."""
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HfHubHTTPError

        if self.is_folder or constants.HF_HUB_OFFLINE:
            return False
        try:
            HfApi().model_info(self.name, revision=self.revision, timeout=_HUB_TIMEOUT)
        except HfHubHTTPError as error:
            raise InputError(self._explain(error)) from error
        # The network may raise anything. There may be a copy from an earlier download.
        except Exception:
            return False
        return True

    def _explain(self, error: Exception) -> str:
        reason = in_a_line(error)
        if self.is_folder:
            return f"The model folder {self.name} cannot be loaded ({reason}); give {_CHOICE}."
        return (
            f"There is no folder {self.name}, and the hub gave no model of this name ({reason}); "
            "check the name and the connection, or download the model on another machine "
            f"(`hf download {self.name} --local-dir FOLDER`) and give the folder."
        )


@contextmanager
def no_bars() -> Iterator[None]:
    """Hide transformers' progress bars, because reading or writing a folder is quick."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
