"""Each row is answered once, even if a reader and a machine are lost meanwhile."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.batch.conftest import answered, read_lines, write_lines
from tests.cluster.conftest import NO_RAY, kill_worker

from loraqa.batch.answer import answer_file
from loraqa.batch.open import open_source
from loraqa.batch.options import Options
from loraqa.batch.parts import Parts
from loraqa.batch.plan import Part, make_plan
from loraqa.reader_options import ReaderOptions

pytest.importorskip("ray", reason=NO_RAY)

ROWS = [
    {
        "id": f"{town} {question}",
        "context": f"The old town number {town} lies on the river Aune. " * 3,
        "question": f"{question} is it?",
    }
    for town in range(12)
    for question in ("Where", "When")
]


# Every process of Ray imports much; where other work keeps the cores busy, that takes minutes.
@pytest.mark.timeout(900)
def test_each_row_is_answered_once_though_an_actor_and_a_node_are_killed(
    two_nodes: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loraqa.cluster.answer import on_cluster
    from loraqa.cluster.connect import connected

    data, out = write_lines(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    saved: Counter[int] = Counter()
    save = Parts.save

    def save_and_kill(self: Parts, part: Part, replies: Any) -> None:
        save(self, part, replies)
        saved[part.number] += 1
        if len(saved) == 2:
            kill_worker("MapWorker")
        if len(saved) == 5:
            two_nodes.remove_node(two_nodes.second, allow_graceful=False)

    monkeypatch.setattr(Parts, "save", save_and_kill)
    plan = make_plan(open_source(data), 2)
    assert len(plan.parts) == 12
    options = Options(ReaderOptions(tiny_folder, max_answer_tokens=6), rows=2)
    with connected(two_nodes.address):
        done = answer_file(plan, out, options, answer_parts=on_cluster(2))
    assert done.answered == 24
    assert saved == Counter(range(12))
    assert [row["id"] for row in read_lines(out)] == [row["id"] for row in ROWS]
    # The bits of one process.
    monkeypatch.setattr(Parts, "save", save)
    answered(data, tmp_path / "alone.jsonl", tiny_folder, rows=2)
    assert out.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
