"""`loraqa calibrate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraqa.cli.options import (
    Base,
    Data,
    Device,
    Dtype,
    Json,
    OnBad,
    Run,
    Seed,
    TokensPerBatch,
    Windows,
    Without,
)
from loraqa.cli.output import importing_pytorch, new_console, print_json, tell
from loraqa.cli.paths import check_order, is_run
from loraqa.cli.readers import load_reader
from loraqa.errors import InputError, counted
from loraqa.prompt.defaults import DEFAULT_WINDOWS

if TYPE_CHECKING:
    from loraqa.adapter.info import Calibration
    from loraqa.report.tables import Table
    from loraqa.squad import QADataset

# From fewer questions the curve is a guess.
_FEW = 50
_SHOWN = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def calibrate(
    run: Run,
    data: Data,
    negatives: Annotated[
        float,
        typer.Option(
            help="Share of the questions that is also asked on a context without the answer.",
            min=0,
            max=1,
        ),
    ] = 0.5,
    windows: Windows = DEFAULT_WINDOWS,
    base: Base = None,
    device: Device = "auto",
    dtype: Dtype = None,
    tokens_per_batch: TokensPerBatch = None,
    without: Without = "",
    seed: Seed = 0,
    on_bad: OnBad = "stop",
    as_json: Json = False,
) -> None:
    """Learn from new questions how far answers can be trusted.

    The run must not have been trained on them. The confidence, and the threshold of "no answer" if
    some questions have none, are kept in RUN. If it is interrupted, the same command goes on from
    there.
    """
    from loraqa.adapter.find import check_source
    from loraqa.adapter.info import read_adapter_info
    from loraqa.answer.journal import Journal
    from loraqa.files import check_folder_writable
    from loraqa.squad import read_passages

    check_order(run, data)
    check_source(run, base)
    folder = _described_folder(run)
    read_adapter_info(folder)
    check_folder_writable(folder)
    dataset = read_passages(data, on_bad=on_bad)
    _check_not_learned(folder, dataset)

    with importing_pytorch():
        from loraqa.answer.calibrate import calibrate as calibrate_reader
        from loraqa.answer.calibrate import keep_calibration
        from loraqa.reader_options import ReaderOptions
        from loraqa.report.progress import answering_progress

    options = ReaderOptions(
        run,
        base=base,
        device=device,
        dtype=dtype,
        tokens_per_batch=tokens_per_batch,
        without=without,
        windows=windows,
    )
    reader = load_reader(options)
    identity, work = reader.identify(), (dataset.fingerprint, str(negatives), seed, str(windows))
    with Journal.in_cache(identity, "calibrate", *work) as journal:
        with answering_progress(journal) as progress:
            calibrated = calibrate_reader(
                reader, dataset, negatives, seed, progress=progress, journal=journal
            )
        # Before the journal is removed, so that no answers are lost if the disk is full.
        if calibrated.calibration is not None:
            keep_calibration(calibrated, folder)
    found = calibrated.calibration
    if found is None:
        raise InputError(
            f"Nothing can be learned from {counted(len(dataset.order), 'question')} of {data}: the "
            "answers are all right, or all wrong, or no more often right where the model is surer; "
            "give more questions."
        )
    if as_json:
        learned = {"no_answer_threshold": calibrated.no_answer_threshold}
        print_json(learned | {"calibration": found.model_dump()})
        return
    new_console().print(_table(found).to_rich())
    if dataset.version == "2.0":
        threshold = calibrated.no_answer_threshold
        tell(f'Answers are "no answer" where its probability is above {threshold:.3g}.')
    if len(dataset.order) < _FEW:
        tell(f"{counted(len(dataset.order), 'question')} are few; expect rough numbers.")
    tell(
        f"The confidence is kept in {folder}; `loraqa evaluate` on other questions shows how well "
        "it fits."
    )


def _described_folder(run: Path) -> Path:
    """Return the folder of the adapter or merged model whose `loraqa.json` keeps the confidence."""
    from loraqa.adapter.find import find_adapter
    from loraqa.adapter.info import INFO

    source = run.expanduser()
    adapter = find_adapter(source)
    folder = adapter or source
    if (folder / INFO).exists():
        return folder
    remedy = (
        "write the adapter anew with `loraqa export`, and give its folder"
        if adapter
        else "give a run, an adapter, or a model that `loraqa export` merged"
    )
    raise InputError(f"{run} has no {INFO} to keep a confidence in; {remedy}.")


def _check_not_learned(folder: Path, dataset: "QADataset") -> None:
    """Raise `InputError` if these are the very questions that the run of an adapter learned."""
    from loraqa.model.folder import read_object

    run = folder.absolute().parent
    recorded = run / "data.json"
    if not is_run(run) or not recorded.exists():
        return
    learned = read_object(recorded).get("train")
    # A training takes the first places of answers that have none.
    same = dataset.with_first_places().fingerprint
    if isinstance(learned, dict) and learned.get("sha256") == same:
        raise InputError(
            f"{run} was trained on the questions of {dataset.source}, so its answers to them are "
            "better than to others; give other questions."
        )


def _table(calibration: "Calibration") -> "Table":
    """Show what the curve makes of some probabilities."""
    from loraqa.answer.confidence import value_at
    from loraqa.report.tables import Column, Table

    columns = (Column("model's own probability", ".2f"), Column("confidence", ".2f"))
    rows = tuple((own, value_at(own, calibration.answer)) for own in _SHOWN)
    asked = counted(calibration.questions, "question")
    return Table(f"Confidence, from {asked}", columns, rows)
