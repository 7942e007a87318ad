"""Where a base model comes from: a local folder, a GGUF file, or a name on the hub.

Large libraries are imported only when something is loaded, so a wrong path is reported at once.
"""

from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from loraqa.errors import InputError, LoraqaError, in_a_line
from loraqa.model.causal import check_causal
from loraqa.model.folder import (
    CONFIG,
    check_folder,
    check_model_path,
    check_tokenizer,
    check_weights,
)
from loraqa.model.gguf import converted, is_gguf
from loraqa.model.quiet import no_bars, no_report
from loraqa.prompt.chat import chat_template
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import CHAT

# Models that state no limit, such as those with ALiBi, get GPT-2's.
_DEFAULT_LIMIT = 1024
# Seconds to wait for an answer of the hub.
_HUB_TIMEOUT = 10.0


def load_tokenizer(source: str | Path, revision: str | None = None) -> tuple[SegmentTokenizer, Any]:
    """Load a base model's tokenizer, wrapped for prompts, and the model's configuration.

    Raises:
        InputError: as for `load_base`, or the tokenizer cannot encode prompts.
    """
    where = ModelSource(source, revision)
    config = where.config()
    return SegmentTokenizer.from_transformers(where.tokenizer()), config


def template_of(text: str, source: str | Path, revision: str | None = None) -> str:
    """Return the text of a template; "chat" stands for the chat template of a model's tokenizer.

    Raises:
        InputError: as for `load_tokenizer`, or the tokenizer has no chat template.
    """
    return chat_template(ModelSource(source, revision).tokenizer()) if text == CHAT else text


def model_folder(source: str | Path, revision: str | None = None) -> Path | None:
    """Return the folder of a model, or None if it is on the hub and was not downloaded.

    The folder of a GGUF file is in loraqa's cache, that of a download in the hub's.
    """
    if folder := _local_folder(Path(source).expanduser()):
        return folder
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(str(source), CONFIG, revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _local_folder(path: Path) -> Path | None:
    if is_gguf(path):
        return converted(path)
    return path if path.is_dir() else None


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
    """A folder, a GGUF file, or a name on the hub.

    Raises:
        InputError: the source is a path, but no model's, or config.json is broken.
    """

    def __init__(self, source: str | Path, revision: str | None = None) -> None:
        self.name = str(source)
        self.revision = revision
        if not self.name:
            raise InputError(
                "The model's name is empty; give a folder, a GGUF file, or a name on the hub."
            )
        check_model_path(source)
        self.path = Path(source).expanduser()
        if self.path.is_dir():
            check_folder(self.path)

    def config(self) -> Any:
        """Return the model's configuration. Raises `InputError` if it is not a causal model's."""
        from transformers import AutoConfig

        config = self._load("configuration", AutoConfig)
        check_causal(self.name, config)
        return config

    def tokenizer(self) -> Any:
        """Return transformers' tokenizer of the model. Raises `InputError` if there is none."""
        from transformers import AutoTokenizer

        if self._folder:
            check_tokenizer(self._folder)
        tokenizer = self._load("tokenizer", AutoTokenizer)
        if not self.path.is_dir():
            tokenizer.name_or_path = self.name
        return tokenizer

    def model(self, **options: Any) -> tuple[Any, Any]:
        """Return the causal language model, and what its files lack or hold beside it.

        transformers, where PEFT is installed, would put in an adapter that lies in the same
        folder. It is looked for in a subfolder that no model has, and so is never found.

        Raises:
            InputError: files of the weights are missing, broken or pickled.
        """
        from transformers import AutoModelForCausalLM

        if self._folder:
            check_weights(self._folder)
        with no_report():
            model, report = self._load(
                "weights",
                AutoModelForCausalLM,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                adapter_kwargs={"subfolder": ".no-adapter"},
                **options,
            )
        # A folder in a cache is no name for others to find the model by.
        if not self.path.is_dir():
            model.name_or_path = model.config.name_or_path = self.name
        return model, report

    def _load(self, part: str, kind: Any, **options: Any) -> Any:
        """Call `kind.from_pretrained`. Raises `InputError` with one sentence if that fails."""
        folder = self._folder
        try:
            with no_bars() if folder else nullcontext():
                return kind.from_pretrained(
                    str(folder) if folder else self.name,
                    revision=self.revision or "main",
                    local_files_only=folder is not None,
                    trust_remote_code=False,
                    **options,
                )
        except LoraqaError:
            raise
        # A damaged file may raise any kind of error.
        except Exception as error:
            from loraqa.model.memory import is_lack_of_memory

            if is_lack_of_memory(error):
                raise
            if folder is None:
                raise InputError(self._explain(in_a_line(error))) from error
            raise InputError(
                f"The {part} of the model in {folder} cannot be loaded ({in_a_line(error)}); copy "
                "the model again from where it came from, or give another one."
            ) from error

    @cached_property
    def _folder(self) -> Path | None:
        """The model's folder: its own, a GGUF file's, or its download if the hub is out of reach.

        Given a name, transformers would ask the hub for each file, and retry for minutes.
        """
        if folder := _local_folder(self.path):
            return folder
        if self._hub_answers():
            return None
        folder = model_folder(self.name, self.revision)
        if folder is None:
            raise InputError(self._explain("it cannot be reached"))
        check_folder(folder)
        return folder

    def _hub_answers(self) -> bool:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        if constants.HF_HUB_OFFLINE:
            return False
        try:
            HfApi().model_info(self.name, revision=self.revision, timeout=_HUB_TIMEOUT)
        except (HfHubHTTPError, HFValidationError) as error:
            raise InputError(self._explain(in_a_line(error))) from error
        # The network may raise anything. There may be a copy from an earlier download.
        except Exception:
            return False
        return True

    def _explain(self, reason: str) -> str:
        return (
            f"There is no folder {self.name}, and the hub gave no model of this name ({reason}); "
            "check the name and the connection, or download the model on another machine "
            f"(`hf download {self.name} --local-dir FOLDER`) and give the folder."
        )
