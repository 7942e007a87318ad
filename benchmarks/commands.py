"""Time `loraqa train` and `loraqa score` from outside, as a user starts them."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loraqa.squad import read_passages

_POLL_SECONDS = 0.02


def start(folder: str, train: str, caches: Sequence[str]) -> dict[str, Any]:
    """Measure the seconds from the command to the end of the first optimizer step.

    Args:
        folder: see `benchmarks.base`.
        train: the file to train on.
        caches: the cache folder of each start, for tokens and compiled kernels.
    """
    return {"seconds": [_start(folder, train, cache) for cache in caches]}


def _start(folder: str, train: str, cache: str) -> float:
    with tempfile.TemporaryDirectory() as out:
        metrics = Path(out) / "run" / "metrics.jsonl"
        command = [
            *(sys.executable, "-m", "loraqa", "train"),
            *("--model", f"{folder}/model", "--train", train, "--out", f"{out}/run"),
        ]
        told = Path(out) / "told"
        environment = os.environ | {"LORAQA_CACHE": cache}
        begin = time.perf_counter()
        with (
            told.open("w") as stderr,
            subprocess.Popen(command, env=environment, stderr=stderr) as process,
        ):
            try:
                while process.poll() is None and not _has_line(metrics):
                    time.sleep(_POLL_SECONDS)
                seconds = time.perf_counter() - begin
            finally:
                process.kill()
        if not _has_line(metrics):
            raise RuntimeError(told.read_text().strip().splitlines()[-1])
    return seconds


def score(folder: str, data: str) -> dict[str, Any]:
    """Measure the seconds of the whole process that scores a predictions file."""
    file = Path(folder) / data
    passages = read_passages(file).passages
    answers = {q.id: q.answers[0].text for p in passages for q in p.questions}
    predictions = Path(folder) / "predictions.json"
    predictions.write_text(json.dumps(answers))
    command = [sys.executable, "-m", "loraqa", "score", str(predictions), "--data", str(file)]
    begin = time.perf_counter()
    done = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    return {"seconds": [seconds], "questions": json.loads(done.stdout)["total"]}


def _has_line(file: Path) -> bool:
    return file.exists() and "\n" in file.read_text()
