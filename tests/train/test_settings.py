"""Settings: the order in which sources win, error messages, and YAML output."""

import re
from dataclasses import fields
from pathlib import Path

import peft
import pytest
import transformers
import yaml
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from loraqa.errors import InputError
from loraqa.speed import chosen
from loraqa.train.settings import (
    OTHER_NAMES,
    CheckpointSettings,
    OptimisationSettings,
    RunSettings,
    differences,
    dotted,
    load_settings,
    parse_settings,
)

NEEDED = ["model.source=gpt2", "data.train=train.json"]


def load(*overrides: str) -> RunSettings:
    return load_settings(overrides=[*NEEDED, *overrides])


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_overrides_win_over_later_files_over_earlier_files_over_defaults(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "lora: {rank: 4, alpha: 8}\nseed: 1\nmodel: {source: a}\n")
    second = write(tmp_path / "b.yaml", "lora:\n  rank: 5\ndata:\n  train: b\nseed: 2\n")
    chosen = load_settings([first, second], ["seed=3"])
    assert (chosen.lora.rank, chosen.lora.alpha, chosen.seed) == (5, 8, 3)
    assert (chosen.model.source, chosen.data.train) == ("a", "b")
    assert chosen.checkpoint == CheckpointSettings()


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("optimisation.learning_rate=3e-4", "optimisation.learning_rate", 3e-4),
        ("optimisation.betas=[0.8, 0.95]", "optimisation.betas", [0.8, 0.95]),
        ("optimisation.clip_norm=null", "optimisation.clip_norm", None),
        ("lora.target_modules=c_attn[q,v]", "lora.target_modules", ["c_attn[q,v]"]),
        ("lora.target_modules=[c_attn, c_fc]", "lora.target_modules", ["c_attn", "c_fc"]),
        ("lora.rank_pattern={c_fc: 4, 'h.1.*': 2}", "lora.rank_pattern", {"c_fc": 4, "h.1.*": 2}),
        ("lora.alpha_pattern={c_attn: 4}", "lora.alpha_pattern", {"c_attn": 4.0}),
        ("lora.activated=true", "lora.activated", True),
        ("data.train=my: data #1.json", "data.train", "my: data #1.json"),
        ("model.revision=123", "model.revision", "123"),
        ("data.dev=null", "data.dev", None),
        ("speed.without=word-cache", "speed.without", ["word-cache"]),
        ("speed.without=[word-cache, cuda-graphs]", "speed.without", ["word-cache", "cuda-graphs"]),
        ("speed.without=[]", "speed.without", []),
        (
            "prompt.template={context}\nQ: {question}\nA: {answer}",
            "prompt.template",
            "{context}\nQ: {question}\nA: {answer}",
        ),
    ],
)
def test_an_override_is_read_as_its_setting_needs(text: str, key: str, value: object) -> None:
    group, name = key.split(".")
    assert load(text).model_dump(mode="json")[group][name] == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimization.epochs=3", "no setting optimization (did you mean optimisation?)"),
        ("lora.rnak=3", "no setting lora.rnak (did you mean lora.rank?)"),
        ("learningrate=3", "no setting learningrate (did you mean optimisation.learning_rate?)"),
        ("sed=3", "no setting sed (did you mean seed?)"),
        ("xyzzy=3", "no setting xyzzy; the groups are model, data"),
        ("optimisation.batch_size=8", "(did you mean optimisation.questions_per_step?)"),
        ("batch_size=8", "(did you mean optimisation.questions_per_step?)"),
        ("lora.r=8", "no setting lora.r (did you mean lora.rank?)"),
        ("optimisation.lora_alpha=8", "(did you mean lora.alpha?)"),
        ("evaluation.evry=8", "(did you mean evaluation.every?)"),
        ("checkpoint.evry=8", "(did you mean checkpoint.every?)"),
        ("lora.learning_rat=8", "(did you mean optimisation.learning_rate?)"),
        (
            "checkpoint.xyzzy=8",
            "no setting checkpoint.xyzzy; the settings of checkpoint are every",
        ),
        ("optimisation.learning_rate=-1", "optimisation.learning_rate is -1 but must be greater"),
        ("optimisation.learning_rate=.inf", "learning_rate is inf but must be a finite number"),
        ("optimisation.learning_rate=.nan", "learning_rate is nan but must be a finite number"),
        ("optimisation.schedule=step", "is 'step' but must be 'cosine', 'linear' or 'constant'"),
        ("optimisation.epochs=true", "optimisation.epochs is True but must be a valid integer"),
        ("optimisation.epochs=1.5", "optimisation.epochs is 1.5 but must be a valid integer"),
        ("optimisation.epochs=two words", "optimisation.epochs is 'two words' but must be"),
        ("seed=-1", "seed is -1 but must be greater than or equal to 0"),
        ("model=gpt2", "model is 'gpt2' but must be a group (source, revision,"),
        ("lora.rank=true", "lora.rank is True but must be a valid integer"),
        ("lora.target_modules=[]", "target_modules is () but must have at least 1 item"),
        ("lora.rank=0", "lora.rank is 0 but must be greater than or equal to 1"),
        ("lora.rank_pattern.c_fc=4", "no setting lora.rank_pattern.c_fc (did you mean lora.rank_"),
        ("lora.rank_pattern=4", "lora.rank_pattern is 4 but must be a valid dictionary"),
        ("lora.rank_pattern={c_fc: 0}", "lora.rank_pattern.c_fc is 0 but must be greater than"),
        ("lora.rank_pattern={4: 4}", "lora.rank_pattern.4.[key] is 4 but must be a valid string"),
        ("lora.alpha_pattern={c_fc: x}", "lora.alpha_pattern.c_fc is 'x' but must be a valid num"),
        ("lora.rank", "'lora.rank' is not a setting; write key=value, as in lora.rank=16."),
        ("prompt.template={context} {answer}", "must contain {context} (once or twice)"),
    ],
)
def test_an_invalid_override_is_explained_in_one_sentence(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(override)
    assert message in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_names_of_other_libraries_lead_to_settings_that_exist() -> None:
    known = dotted(load())
    for name, key in OTHER_NAMES.items():
        assert key in known
        # A name that is a setting's own would never be looked up.
        assert not any(own.rpartition(".")[2] == name for own in known)


def test_names_of_other_libraries_are_theirs() -> None:
    theirs = {"model_name_or_path", "max_seq_length", "doc_stride", "batch_size", "lr"}
    # The last one was a field of TrainingArguments in transformers 4.
    theirs |= {"early_stopping_patience", "loraplus_lr_ratio", "warmup_ratio"}
    for kind in (transformers.TrainingArguments, peft.LoraConfig):
        theirs |= {field.name for field in fields(kind)}
    assert OTHER_NAMES.keys() <= theirs


def test_a_later_pattern_replaces_an_earlier_one() -> None:
    patterns = "lora.rank_pattern={c_attn: 4, c_fc: 2}", "lora.rank_pattern={c_proj: 8}"
    assert load(*patterns).lora.rank_pattern == {"c_proj": 8}


def test_missing_settings_are_named_with_their_flags() -> None:
    missing = r"model.source is missing.* --model, .*data.train is missing.* --train, "
    with pytest.raises(InputError, match=missing):
        load_settings()


LONG = "x" * 400_000
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "override",
    [
        f"lora.rank={LONG}",
        f"lora.rank={DEEP}",
        f"lora.rank={'9' * 100_000}",
        f"lora.target_modules=[{', '.join(['[]'] * 10_000)}]",
        f"{LONG}=1",
        f"lora.{LONG}=1",
        LONG,
        f"lora={LONG}",
        f"optimisation.schedule={LONG}",
        f"prompt.template={LONG}",
        f"speed.without={LONG}",
        f"lora.rank_pattern={{{LONG}: 0}}",
    ],
    ids=range(12),
)
def test_messages_are_bounded(override: str) -> None:
    with pytest.raises(InputError) as caught:
        chosen({}, load(override).speed.without)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("squad.json", '{"version": "1.1", "data": [{"title": "", "paragraphs": []}]}'),
        ("rows.jsonl", '{"id": 1, "question": "Who?", "context": "Ann."}\n' * 3),
        ("list.json", '[\n  {"question": "Who?"}\n]'),
        ("rows.csv", "id,context,question,answers\n1,Ann.,Who?,{}\n"),
        ("rows.tsv", "id\tcontext\tquestion\n1\tAnn.\tWho?\n"),
        ("quoted.csv", '"id";"question";"context"\n'),
        ("large", "# nothing\n" * 200_000),
    ],
)
def test_a_data_file_given_as_settings_is_recognized(tmp_path: Path, name: str, text: str) -> None:
    file = write(tmp_path / name, text)
    with pytest.raises(InputError) as caught:
        load_settings([file], NEEDED)
    assert str(caught.value) == (
        f"{file} holds no settings but data; questions are given with --train and --dev."
    )


def test_a_folder_given_as_settings_is_recognized(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder, not a settings file.*--model"):
        load_settings([tmp_path], NEEDED)


def test_settings_about_questions_are_no_data(tmp_path: Path) -> None:
    text = (
        "prompt: {template: '{context}, question, {question}: {answer}'}\n"
        "evaluation:\n  questions: 3\n"
    )
    assert load_settings([write(tmp_path / "a.yaml", text)], NEEDED).evaluation.questions == 3
    for saved in (load(), load("data.train=question,answer.csv")):
        assert load_settings([write(tmp_path / "b.yaml", saved.to_yaml())]) == saved


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "lora:\n  rank: 4\n  rank: 8\n",
            r"line 3, column 3 is not valid YAML: 'rank' occurs twice",
        ),
        ("lora: [\n", "line 2, column 1 is not valid YAML"),
        ("- lora\n", "must contain groups of settings"),
        ("[lora]: 1\n", "not valid YAML: found unhashable key"),
        ("lora: !!python/object/apply:os.getcwd []\n", "not valid YAML: could not determine"),
    ],
)
def test_a_bad_file_is_refused_with_line_and_column(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_settings([write(tmp_path / "bad.yaml", text)], NEEDED)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.yaml does not exist; check the path"):
        load_settings([tmp_path / "nowhere.yaml"], NEEDED)


def test_a_group_of_only_comments_has_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "lora:\n#  rank: 4\n")
    assert load_settings([path], NEEDED) == load()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optim.lr: 3e-4\n", "no setting optim.lr (did you mean optimisation.learning_rate?)"),
        ("optim.xyzzy: 3\n", "no setting optim.xyzzy; the groups are model, "),
        ("lora: {r: 8}\n", "no setting lora.r (did you mean lora.rank?)"),
    ],
)
def test_wrong_names_in_a_file_have_hints(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        load_settings([write(tmp_path / "a.yaml", text)], NEEDED)


@examples(max_examples=30)
@example(learning_rate=1e-3, alpha=32.0, source="0E0", pattern="1e3", cue=" ", patience=None)
@given(
    learning_rate=st.floats(1e-12, 1.0),
    alpha=st.floats(1e-6, 1e6),
    source=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1),
    pattern=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1),
    cue=st.text(" \n\x85\u2028\u2029é:", max_size=5),
    patience=st.none() | st.integers(1, 10**9),
)
def test_settings_round_trip_through_yaml(
    tmp_path_factory: pytest.TempPathFactory,
    learning_rate: float,
    alpha: float,
    source: str,
    pattern: str,
    cue: str,
    patience: int | None,
) -> None:
    chosen = parse_settings(
        {
            "model": {"source": source},
            "data": {"train": source},
            "optimisation": {"learning_rate": learning_rate},
            "lora": {"alpha": alpha, "rank_pattern": {pattern: 3}},
            "prompt": {"template": f"{{context}}{cue}{{question}}{cue}A: {{answer}}"},
            "evaluation": {"patience": patience},
        }
    )
    path = write(tmp_path_factory.mktemp("settings") / "settings.yaml", chosen.to_yaml())
    assert load_settings([path]) == chosen


def test_full_paths_are_valid_in_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "gpt2").write_text("no folder, so no model")
    write(tmp_path / "train.json", "{}")
    monkeypatch.chdir(tmp_path)
    here = load("model.source=base", "data.train=./train.json", "data.dev=rajpurkar/squad")
    full = here.with_full_paths()
    assert full.model.source == str(tmp_path / "base")
    assert full.data.train == str(tmp_path / "train.json")
    assert full.data.dev == "rajpurkar/squad"
    assert full.with_full_paths() == full
    assert load().with_full_paths().model.source == "gpt2"


def test_every_setting_is_written() -> None:
    written = yaml.safe_load(load().to_yaml())
    assert written["evaluation"]["patience"] is None
    assert set(written["optimisation"]) == set(OptimisationSettings.model_fields)


def test_differences_are_by_dotted_key() -> None:
    assert differences(load(), load("lora.rank=3", "seed=1", "lora.rank_pattern={c_fc: 4}")) == {
        "seed": (0, 1),
        "lora.rank": (16, 3),
        "lora.rank_pattern": ({}, {"c_fc": 4}),
    }


def test_a_binary_file_is_no_settings_file(tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_bytes(b"PAR1\0\xac")
    with pytest.raises(InputError, match=r"is a binary file, not settings; questions are giv"):
        load_settings([tmp_path / "data.parquet"])
