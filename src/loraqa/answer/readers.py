"""Readers of several adapters over one loaded base. `loraqa.reader.load_readers` loads them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from loraqa.adapter.choice import parse_choice
from loraqa.answer.reader import Reader
from loraqa.errors import InputError
from loraqa.lora.switch import fit, using
from loraqa.lora.weighted import AdapterLayers, weighted_sum


class Readers(Mapping[str, Reader]):
    """The reader of each adapter by its name, and by `choose` those of weighted sums.

    All share the base model. They may answer at once in several threads.

    Args:
        readers: readers whose `runner` is the same, at least one.
        layers: the layers of the same adapters, as `fit` left them.
    """

    def __init__(self, readers: Mapping[str, Reader], layers: Mapping[str, AdapterLayers]) -> None:
        self._readers = dict(readers)
        self._layers = layers

    def __getitem__(self, name: str) -> Reader:
        return self._readers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def replaced(self, **changes: Any) -> "Readers":
        """Return the same readers with some attributes replaced, as `dataclasses.replace` does."""
        readers = {name: replace(reader, **changes) for name, reader in self.items()}
        return Readers(readers, self._layers)

    def choose(self, choice: str) -> Reader:
        """Return the reader of an adapter, or of a weighted sum of some: "law:0.7+news:0.3".

        A sum is made anew at each call. It answers as the first adapter that it names, with its
        threshold of "no answer", but without a calibration, which would be that of other answers.

        Raises:
            InputError: there is no such adapter, the sum is not written so, or its adapters cannot
                be added (see `check_same_template` and `check_summable`).
        """
        weights = parse_choice(choice, self)
        first = next(iter(weights))
        if weights == {first: 1.0}:
            return self[first]
        check_same_template({name: self[name].template.text for name in weights})
        layers = fit(self[first].runner.model, weighted_sum(weights, self._layers))
        return replace(
            self[first],
            calibration=None,
            using=partial(using, layers),
            identify=partial(self._identify, weights),
        )

    def _identify(self, weights: Mapping[str, float]) -> str:
        """See `Reader.identify`."""
        facts = [(self[name].identify(), weight) for name, weight in weights.items()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def check_same_template(templates: Mapping[str, str]) -> None:
    """Raise `InputError` if the prompts of adapters that are to be added differ."""
    first, *others = templates
    for other in others:
        if templates[other] != templates[first]:
            raise InputError(
                f"The prompts of {first} and {other} are written by different templates, so their "
                "sum would fit neither; use each alone."
            )
