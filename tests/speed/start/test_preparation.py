"""Without any of its accelerations, the preparation gives the same data."""

from pathlib import Path

import numpy as np
import pytest
from tests.train.conftest import PASSAGES

from loraqa.errors import InputError
from loraqa.speed import OF_COMMANDS, OF_MODELS, OF_PREPARATION, chosen
from loraqa.speed.start import accelerated_preparation
from loraqa.speed.start.words import cuts_at_blanks
from loraqa.squad import write_official
from loraqa.train.data import Preparation
from loraqa.train.settings import load_settings


@pytest.mark.parametrize("without", [(), *((name,) for name in OF_PREPARATION), ("all",)])
def test_every_preparation_gives_the_same_data(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: tuple[str, ...]
) -> None:
    monkeypatch.setenv("LORAQA_CACHE", str(tmp_path / "cache"))
    write_official(tmp_path / "train.json", PASSAGES, "1.1")
    chosen = load_settings(
        overrides=[f"model.source={tiny_folder}", f"data.train={tmp_path / 'train.json'}"]
    )
    expected = Preparation()(chosen)
    assert cuts_at_blanks(expected.tokenizer.backend)
    # The second time from the cache, if there is one.
    for _ in range(2):
        data = accelerated_preparation(without)(chosen)
        assert data.facts == expected.facts
        assert data.encoded.counts == expected.encoded.counts
        with np.printoptions(threshold=1_000_000):
            assert repr(data.encoded.trees) == repr(expected.encoded.trees)
    kept = (tmp_path / "cache" / "encoded").exists()
    assert kept == ("encoded-cache" not in without and "all" not in without)


def test_all_leaves_out_every_acceleration() -> None:
    assert accelerated_preparation(["all"]) == Preparation()
    assert accelerated_preparation(OF_PREPARATION) == Preparation()
    assert accelerated_preparation() != Preparation()
    assert accelerated_preparation(OF_MODELS) != Preparation()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError) as told:
        accelerated_preparation(["all", "word-cash"])
    names = ", ".join([*OF_MODELS, *OF_PREPARATION, *OF_COMMANDS])
    assert str(told.value) == (
        "There is no acceleration 'word-cash' (did you mean word-cache?); give `all`, or one of "
        f"{names}."
    )
    chosen({}, ["all", *OF_MODELS, *OF_PREPARATION])
