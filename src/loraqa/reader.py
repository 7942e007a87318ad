"""The recipe of answering: load a model and its adapter, choose a runner, accelerate it, answer.

reader = Reader.load("runs/squad")
for answer in reader.answer("Salt came from the hills.", ["Where did salt come from?"]):
    print(answer.text, answer.start, answer.end, answer.log_probability)
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from loraqa.answer.load import load_model
from loraqa.answer.reader import Reader as PlainReader
from loraqa.model.choose import choose_runner
from loraqa.model.memory import tokens_at_once
from loraqa.model.source import position_limit
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.speed.start import accelerated_preparation
from loraqa.speed.trial import fastest


@dataclass(frozen=True)
class Reader(PlainReader):
    """A reader with `load`, which uses all accelerations that work on this machine."""

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        base: str | Path | None = None,
        dtype: str | None = None,
        device: str = "auto",
        without: str | Collection[str] = (),
    ) -> "Reader":
        """Load a run, an adapter folder, a merged model, or a model that was not fine-tuned.

        Prompts are written as in training; a model that was not fine-tuned gets the default
        template. On a CPU weights are packed for answering (see `prepacked-weights`), so the model
        can be neither trained nor saved.

        Args:
            source, base, dtype, device: as for `load_model`.
            without: names of accelerations to leave out, or "all"; a text may have several names
                with commas between.

        Raises:
            InputError: as for `load_model`, or a name in `without` is unknown.
        """
        preparation = accelerated_preparation(without)
        loaded = load_model(source, base=base, dtype=dtype, device=device)
        tokenizer = preparation.wrap_tokenizer(SegmentTokenizer.from_transformers(loaded.tokenizer))
        tokens, info = tokens_at_once(loaded.model), loaded.info
        max_length = info.max_length if info else position_limit(loaded.model.config)
        plain = choose_runner(loaded.model, max_length)
        runner, _ = fastest(plain, ["answering"], without)
        if info is None:
            return cls(runner, tokenizer, Template(), max_length, tokens_per_batch=tokens)
        return cls(
            runner,
            tokenizer,
            Template(info.template),
            max_length,
            info.stride,
            info.max_answer_tokens,
            no_answer=info.version == "2.0",
            tokens_per_batch=tokens,
        )
