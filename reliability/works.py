"""What loraqa does in the studies: tiny trainings, evaluations and exports, and their results."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from reliability.disk import Tree, read_tree
from reliability.forks import Ended, loraqa, run
from reliability.watching import Answer

FAMILIES = ("gpt2", "llama")
RUN = "run"
PREDICTIONS = "predictions.json"
# How the names of temporary files begin or end.
_TEMPORARY = (".loraqa-unfinished", ".lock", ".tmp")
# Values that differ between two runs: times, what depends on times, and the command, which may say
# that a run was resumed.
_FREE_VALUES = ("seconds", "per_second", "memory_mib", "command")
# Files of which only the existence counts: they tell of times and of the command.
_FREE = (
    *("README.md", "adapter.md", "environment.json", "manifest.json"),
    *("report.html", "report.json"),
)


@dataclass(frozen=True)
class Work:
    """A command, and the command that goes on after it was interrupted.

    Attributes:
        name: its name in the tables.
        begin: does the work.
        go_on: goes on with it, or does it again.
        start: what the place holds before.
        nothing: what `go_on` says if nothing has begun; then `begin` is run.
    """

    name: str
    begin: Callable[[], None]
    go_on: Callable[[], None]
    start: Tree
    nothing: str = "There is no run to resume"

    def finish(self, place: Path, answer: Answer | None = None) -> Ended:
        """Go on with the work in a place where it was interrupted."""
        ended = run(self.go_on, place, answer=answer)
        if self.nothing in ended.said:
            return run(self.begin, place, answer=answer)
        return ended


def training(inputs: Path, family: str, start: Tree, *, plain: bool = False) -> Work:
    """Return a training of eight steps with four checkpoints and four evaluations.

    Args:
        inputs: the folder that `write_inputs` filled.
        family: the family of the model.
        start: what the place holds before.
        plain: whether all accelerations are left out.
    """
    begin = training_arguments(inputs, family, **{"speed.without": "all"} if plain else {})
    resume = ["train", "--out", RUN, "--resume"]
    return Work(f"train {family}", partial(loraqa, begin), partial(loraqa, resume), start)


def training_arguments(inputs: Path, family: str, **others: Any) -> list[str]:
    """Return the arguments of a training of eight steps; `others` are settings."""
    options = {
        "lora.rank": 2,
        "lora.dropout": 0.1,
        "optimisation.epochs": 4,
        "optimisation.questions_per_step": 4,
        "optimisation.learning_rate": 1e-2,
        "evaluation.every": 3,
        "evaluation.max_answer_tokens": 4,
        "checkpoint.every": 2,
        "speed.without": "preparing-process",
        **others,
    }
    return [
        *("train", "--out", RUN, "--model", str(inputs / family)),
        *("--train", str(inputs / "train.json"), "--dev", str(inputs / "dev.json")),
        *(part for key, value in options.items() for part in ("--set", f"{key}={value}")),
    ]


def evaluation(inputs: Path, source: str, start: Tree) -> Work:
    """Return an evaluation of `source`, a run, an adapter or an export, in several batches."""
    data = ["--data", str(inputs / "dev.json"), "--out", PREDICTIONS]
    work = partial(_in_small_batches, ["evaluate", source, *data])
    return Work(f"evaluate {source}", work, work, start)


def export(form: str, start: Tree) -> Work:
    """Return an export of the run in one of the formats, to a folder of the same name."""
    work = partial(loraqa, ["export", RUN, "--format", form, "--out", form])
    return Work(f"export {form}", work, work, start)


def result_of(place: Path) -> dict[str, Any]:
    """Return what a place holds, without caches, times and temporary files of the system."""
    return {
        name: _without_times(name, content)
        for name, content in read_tree(place).items()
        if not name.startswith(("cache", "tmp"))
    }


def left_behind(place: Path) -> list[str]:
    """Return the temporary files and folders in a place, but for the cache that PyTorch makes."""
    paths = (path for path in place.rglob("*") if not path.name.startswith("torchinductor_"))
    names = (path.relative_to(place).as_posix() for path in paths)
    return [
        name for name in names if name.startswith("tmp/") or Path(name).name.startswith(_TEMPORARY)
    ]


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Return how one result differs from another, or None."""
    kinds = {
        "lacks": sorted(before.keys() - after.keys()),
        "has also": sorted(after.keys() - before.keys()),
        "differs in": sorted(k for k in before.keys() & after.keys() if before[k] != after[k]),
    }
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in kinds.items() if names) or None


def essential(result: Mapping[str, Any], damaged: str) -> dict[str, Any]:
    """Return the adapter, the scores and the answers in a result, without the damaged file."""
    states = sorted(name for name in result if name.endswith("/state.json"))
    scores = {} if not states else {"scores": result[states[-1]]}
    kept = {
        name: content
        for name, content in result.items()
        if name == PREDICTIONS
        or (name.startswith("run/adapter/") and not name.endswith((*_FREE, damaged)))
    }
    return kept | scores


def write_inputs(folder: Path) -> None:
    """Write the models and the data: `gpt2/`, `llama/`, `train.json`, `dev.json`."""
    from transformers.utils.logging import disable_progress_bar

    from loraqa.squad.official import write_official

    disable_progress_bar()
    tokenizer = _tokenizer(folder)
    for family in FAMILIES:
        _model(family).save_pretrained(folder / family)
        tokenizer.save_pretrained(folder / family)
    passages = list(_passages())
    write_official(folder / "train.json", passages, "1.1")
    write_official(folder / "dev.json", passages[:3], "1.1")


def share_with_forks(inputs: Path, folder: Path) -> None:
    """Do in this process, once, what takes most of a work's time and is not what a study is about.

    Forks of this process find the models' modules imported and the kernels compiled; each still
    keeps these in its own cache. Their reports have no plots, which no result holds either.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from loraqa.model.load import choose_dtype
    from loraqa.speed.cpu import native

    disable_progress_bar()
    for family in FAMILIES:
        AutoModelForCausalLM.from_pretrained(inputs / family)
    compile_anew, compiled = native._compile, dict[str, Path]()

    def compile_once(compiler: Sequence[str], options: Sequence[str], _: Path) -> Path:
        key = " ".join([*compiler, *options])
        if key not in compiled:
            lasting = Path(tempfile.mkdtemp(dir=folder))
            compiled[key] = compile_anew(compiler, options, lasting)
        return compiled[key]

    patch.object(native, "_compile", compile_once).start()
    os.environ["LORAQA_CACHE"] = str(folder / "cache")
    native._library(choose_dtype("auto", torch.device("cpu")))
    native._library.cache_clear()
    patch("loraqa.report.plots.to_svg", lambda _: "").start()


def _in_small_batches(arguments: list[str]) -> None:
    """Run loraqa with answers in batches of 60 tokens, so that tiny data fill several."""
    from loraqa.reader import Reader

    load = Reader.load

    def load_small(*given: Any, **named: Any) -> Any:
        return replace(load(*given, **named), tokens_per_batch=60)

    Reader.load = load_small  # type: ignore[method-assign]
    loraqa(arguments)


def _without_times(name: str, content: bytes | None) -> Any:
    if content is None or name.endswith(_FREE):
        return None
    try:
        if name.endswith(".json"):
            return _essential_values(json.loads(content))
        if name.endswith(".jsonl"):
            return [_essential_values(json.loads(line)) for line in content.splitlines()]
    except ValueError:
        pass
    return content


def _essential_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _essential_values(v) for k, v in value.items() if not k.endswith(_FREE_VALUES)}
    return value


def _tokenizer(folder: Path) -> Any:
    """Return a byte-level tokenizer with a few merges and an end-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["Context: the old mill of the town. Question: who? Answer: the king"] * 3
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, bos_token=end, model_max_length=256
    )


def _model(family: str) -> Any:
    """Return a random model of two layers."""
    import torch
    import transformers

    torch.manual_seed(0)
    shared = {"vocab_size": 300, "eos_token_id": 0, "bos_token_id": 0, "initializer_range": 0.2}
    if family == "gpt2":
        config: Any = transformers.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, n_positions=256, **shared
        )
    else:
        config = transformers.LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=256,
            **shared,
        )
    return transformers.AutoModelForCausalLM.from_config(config)


def _passages() -> Iterator[Any]:
    from loraqa.squad import Answer, Passage, Question

    towns = [("Aune", "Ruth Olen", "1203"), ("Birkholt", "Tor", "1387"), ("Carrow", "Lund", "1409")]
    for name, builder, year in [*towns, ("Dal", "Ada", "1101")]:
        context = f"The town of {name} has a mill, built by {builder} in {year}."
        asked = [("Who built it?", builder), ("When?", year), ("Where?", name)]
        yield Passage(
            context,
            tuple(
                Question(f"{name}-{number}", text, (Answer(answer, context.index(answer)),))
                for number, (text, answer) in enumerate(asked)
            ),
        )
