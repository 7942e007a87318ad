"""The report in a browser: it opens, filters and shows every question, wherever it is read."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.analysis.examples import CONTEXT, asked, outcome, some_questions
from tests.report.comparisons import drawn, searched

from loraqa.analysis.error_kinds import KINDS
from loraqa.analysis.examined import examine
from loraqa.analysis.outcome import Asked, Outcome
from loraqa.files import write_json
from loraqa.report.comparison import save_comparison
from loraqa.report.run import write_report
from loraqa.train.run import RunDirectory

TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"

HOSTILE = (
    "</script><script>window.broken = 1</script> <!-- <script> & &lt; \u2028 \x01\x1b \"' ]]> "
    "<img src=x onerror='window.broken = 1'> {{ 7 * 7 }} end"
)
# Characters that JavaScript counts as two.
WIDE = "🏰🏰 The mill was built by Ruth 🏰 Olen in 1203. 🏰"


class Opened:
    """A report that is open in a browser; closing it checks that nothing went wrong."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.requested: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on(
            "console",
            lambda told: self.problems.append(told.text) if told.type == "error" else None,
        )
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()
        assert self.problems == []
        assert len(self.requested) == 1

    def choose(self, filter: str, label: str) -> None:
        self.page.locator(f"#{filter}").select_option(label=label)

    @property
    def shown(self) -> list[str]:
        """The questions in the list."""
        texts: list[str] = self.page.locator("#questions summary b").all_inner_texts()
        return texts

    @property
    def count(self) -> str:
        text: str = self.page.locator("#count").inner_text()
        return text

    def open(self, number: int) -> Any:
        """Open a question of the list and return its element."""
        self.page.locator("#questions summary").nth(number).click()
        details = self.page.locator("#questions details").nth(number)
        details.locator("blockquote").wait_for()
        return details

    def violations(self) -> list[tuple[str, str]]:
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [(each["id"], node["html"]) for each in found for node in each["nodes"]]


def write(folder: Path, given: Outcome) -> Path:
    given.save(folder)
    return write_report(folder)


def with_confidence(questions: Sequence[Asked]) -> list[Asked]:
    """The same questions, with calibrated confidence that rises, and three candidates each."""
    changed = []
    for number, question in enumerate(questions):
        answer = replace(question.given, confidence=(number + 1) / (len(questions) + 1))
        others = [replace(answer, text=text, confidence=0.01) for text in ("second", "third")]
        changed.append(replace(question, candidates=(answer, *others)))
    return changed


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of ninety questions on thirty contexts, with errors of several kinds."""
    contexts = [f"{CONTEXT} It has {number} gates." for number in range(30)]
    questions = []
    for number, context in enumerate(contexts):
        for id, question, golds, given in (
            ("a", "Who built the mill?", ["Ruth Olen"], ["Ruth Olen", "John Smith"][number % 2]),
            ("b", "When was it built?", ["1203", "in 1203"], ["in", "", "1203"][number % 3]),
            ("c", "What does it cost?", [], ["", "cold"][number % 2]),
        ):
            name = f"{id}{number}"
            questions.append(
                asked(f"{question} ({name})", golds, given, context, id=name, number=number)
            )
    folder = tmp_path_factory.mktemp("run")
    write_training(folder)
    (folder / "comparison").mkdir()
    save_comparison([searched("greedy"), drawn("top-p:0.9")], folder / "comparison")
    base = [
        asked(
            q.question,
            [g.text for g in q.golds],
            "mill",
            contexts[q.context],
            id=q.id,
            number=q.context,
        )
        for q in questions
    ]
    outcome(base, contexts).save(folder / "base")
    return write(folder, outcome(with_confidence(questions), contexts))


def write_training(folder: Path) -> None:
    """Write the files that a training of three steps leaves in its run."""
    run = RunDirectory(folder)
    figures = {"epoch": 1.0, "learning_rate": 1e-3, "memory_mib": 100.0}
    speed = {"questions_per_second": 10.0, "tokens_per_second": 1000.0}
    scores = {"exact_match": 10.0, "f1": 20.0, "total": 5}
    for step in (1, 2, 3):
        run.append({"kind": "train", "step": step, "loss": 3.0 / step, **figures, **speed})
    for step in (0, 3):
        run.append({"kind": "evaluation", "step": step, **scores})
    run.settings_file.write_text("seed: 3\nlora:\n  rank: 8\n")
    base = {"source": "models/tiny", "sha256": "12" * 32, "config": {"hidden": 3}}
    write_json(
        run.data_file, {"base": base, "train": {"source": "train.json", "sha256": "34" * 32}}
    )
    write_json(run.environment_file, {"command": "loraqa train --out run", "torch": "2.0"})


def test_it_begins_with_the_scores_and_the_surest_wrong_answers(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    gain, wrong, kinds = (page.index(f'<section id="{id}">') for id in ("gain", "wrong", "errors"))
    assert "Only 90 questions: too few to judge the model by." in page[:gain]
    assert gain < wrong < kinds
    mistakes = [each for each in examine(Outcome.load(report.parent)) if each.kind != "right"]
    surest = sorted(mistakes, key=lambda each: -(each.asked.given.confidence or 0))
    shown = [page.find(each.asked.question, wrong, kinds) for each in surest[:5]]
    assert shown == sorted(shown)
    assert shown[0] > 0
    assert all(page.find(each.asked.question, wrong, kinds) < 0 for each in surest[5:])


def test_scores_of_the_dev_sample_are_shown_where_those_of_the_base_are_missing(
    tmp_path: Path,
) -> None:
    write_training(tmp_path)
    questions = [asked("Who?", ["Ruth Olen"], "Ruth Olen", id=str(n)) for n in range(100)]
    page = write(tmp_path, outcome(questions)).read_text(encoding="utf-8")
    assert "<dt>exact match on dev</dt><dd>10.0 → 10.0</dd>" in page
    assert "<dt>questions of dev</dt><dd>5</dd>" in page
    assert "too few to judge" not in page
    assert 'id="wrong"' not in page


@pytest.fixture(scope="module")
def examined(report: Path) -> list[Any]:
    return examine(Outcome.load(report.parent))


def test_it_shows_the_whole_run(browser: Any, report: Path) -> None:
    with Opened(browser, report) as opened:
        titles = opened.page.locator("h2").all_inner_texts()
        assert titles == [
            "Against the base model",
            "Wrong answers",
            "Kinds of errors",
            "Slices",
            "Calibration",
            "Training",
            "Decoding strategies",
            "Questions and errors",
            "Settings and data",
        ]
        links = opened.page.locator("nav a")
        targets = [links.nth(n).get_attribute("href") for n in range(links.count())]
        assert all(opened.page.locator(target).count() == 1 for target in targets)
        assert opened.page.locator("svg").count() == 4
        text = opened.page.inner_text("main")
        right = sum(each.kind == "right" for each in examine(Outcome.load(report.parent)))
        assert f"0.0 → {100 * right / 90:.1f}" in text
        for shown in (
            *("calibrated confidence", "probability of the answer", "top-p:0.9", "lora.rank"),
            *(
                "12" * 32,
                "34" * 32,
                "cd" * 32,
                "loraqa train --out run",
                "loraqa evaluate runs/one",
            ),
        ):
            assert shown in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_it_can_be_read_by_everybody(browser: Any, report: Path, scheme: str, width: int) -> None:
    size = {"width": width, "height": 800}
    with Opened(browser, report, color_scheme=scheme, viewport=size) as opened:
        opened.open(0)
        opened.open(2)
        assert opened.violations() == []
        assert opened.page.evaluate(TOO_WIDE) == 0


def test_a_report_without_an_evaluation_can_be_read_by_everybody(
    browser: Any, tmp_path: Path
) -> None:
    (tmp_path / "settings.yaml").write_text("seed: 3\n")
    with Opened(browser, write_report(tmp_path)) as opened:
        assert opened.violations() == []
        assert "There is no evaluation here yet" in opened.page.inner_text("main")


def test_errors_are_shown_first(browser: Any, report: Path, examined: list[Any]) -> None:
    wrong = [each.asked.question for each in examined if each.kind != "right"]
    with Opened(browser, report) as opened:
        assert opened.count == f"{len(wrong)} of 90 questions, 25 shown"
        assert opened.shown == wrong[:25]
        opened.page.click("#more")
        assert opened.shown == wrong[:50]
        while opened.page.locator("#more").is_visible():
            opened.page.click("#more")
        assert opened.shown == wrong


@pytest.mark.parametrize("kind", KINDS)
def test_filter_by_kind(browser: Any, report: Path, examined: list[Any], kind: str) -> None:
    expected = [each.asked.question for each in examined if each.kind == kind]
    with Opened(browser, report) as opened:
        opened.choose("kind", f"{kind} ({len(expected)})")
        assert opened.shown == expected[:25]
        assert opened.count.startswith(f"{len(expected)} of 90 questions")


def test_filter_by_slice_and_kind_and_words(
    browser: Any, report: Path, examined: list[Any]
) -> None:
    who = [each for each in examined if each.labels["question word"] == "who"]
    with Opened(browser, report) as opened:
        opened.choose("kind", "all questions (90)")
        opened.choose("slice", "who")
        assert opened.count == f"{len(who)} of 90 questions, 25 shown"
        assert opened.shown == [each.asked.question for each in who][:25]
        right = [each.asked.question for each in who if each.kind == "right"]
        total = sum(each.kind == "right" for each in examined)
        opened.choose("kind", f"right ({total})")
        assert opened.shown == right
        opened.page.fill("#search", "(A12)")
        assert opened.shown == ["Who built the mill? (a12)"]
        opened.page.fill("#search", "no such words")
        assert opened.shown == []
        assert opened.count == "0 of 90 questions, 0 shown"
        assert not opened.page.locator("#more").is_visible()


def test_order_by_confidence(browser: Any, report: Path, examined: list[Any]) -> None:
    wrong = [each.asked.question for each in examined if each.kind != "right"]
    with Opened(browser, report) as opened:
        opened.choose("order", "most confident first")
        assert opened.shown == wrong[::-1][:25]
        opened.choose("order", "least confident first")
        assert opened.shown == wrong[:25]


def test_a_click_in_a_table_filters_the_list(
    browser: Any, report: Path, examined: list[Any]
) -> None:
    with Opened(browser, report) as opened:
        opened.page.click("#errors button:text-is('abstained wrongly')")
        abstained = [each.asked.question for each in examined if each.kind == "abstained wrongly"]
        assert opened.shown == abstained
        opened.page.click("#slices button:text-is('when')")
        wrong = [
            each.asked.question
            for each in examined
            if each.labels["question word"] == "when" and each.kind != "right"
        ]
        assert opened.shown == wrong[:25]
        assert opened.page.evaluate("document.activeElement.id") == "kind"


def test_a_question_shows_context_answer_golds_and_candidates(browser: Any, tmp_path: Path) -> None:
    questions = with_confidence(
        [
            asked("Who built it?", ["Ruth 🏰 Olen"], "Olen in 1203", WIDE, id="over"),
            asked("When?", ["in 1203"], "mill", WIDE, id="apart"),
            asked("Whose?", ["nobody's"], "elsewhere", WIDE, id="nowhere"),
        ]
    )
    with Opened(browser, write(tmp_path, outcome(questions, [WIDE]))) as opened:
        over = opened.open(0)
        assert over.locator("blockquote").inner_text() == WIDE
        marks = over.locator("mark")
        assert marks.all_inner_texts() == ["Ruth 🏰 ", "Olen", " in 1203"]
        classes = [marks.nth(number).get_attribute("class") for number in range(3)]
        assert classes == ["gold", "given gold", "given"]
        cells = over.locator("tbody td").all_inner_texts()
        assert cells[0:3] == ["Olen in 1203", "0.61", "0.25"]
        assert cells[3::3] == ["second", "third"]
        apart = opened.open(1).locator("mark")
        assert apart.all_inner_texts() == ["mill", "in 1203"]
        nowhere = opened.open(2)
        assert nowhere.locator("mark").count() == 0
        assert "nobody's" in nowhere.inner_text()


def test_texts_cannot_break_the_page(browser: Any, tmp_path: Path) -> None:
    questions = [
        asked(f"Who? {HOSTILE}", ["end", HOSTILE], "&lt;", HOSTILE, id="</script>"),
        *some_questions(),
    ]
    made = outcome(questions, [HOSTILE], model=HOSTILE)
    made = replace(made, command=HOSTILE, data={**made.data, "source": HOSTILE})
    with Opened(browser, write(tmp_path, made)) as opened:
        quote = opened.open(0).locator("blockquote")
        assert quote.evaluate("element => element.textContent") == HOSTILE
        assert opened.page.evaluate("window.broken") is None
        assert opened.page.locator("img").count() == 0
        assert opened.page.locator("script").count() == 2
        assert "49" not in opened.page.inner_text("header")


def test_ten_thousand_questions_open(browser: Any, tmp_path: Path) -> None:
    questions = [
        replace(question, id=f"{question.id}{number}")
        for number in range(2_500)
        for question in some_questions()
    ]
    with Opened(browser, write(tmp_path, outcome(questions))) as opened:
        assert opened.count == "5,000 of 10,000 questions, 25 shown"
        assert len(opened.shown) == 25
        assert opened.page.locator("blockquote").count() == 0
        opened.page.fill("#search", "b2499")
        assert opened.count == "1 of 10,000 questions, 1 shown"


def test_in_print_it_is_light_and_without_controls(browser: Any, report: Path) -> None:
    paper_size = {"width": 640, "height": 1000}
    with Opened(browser, report, color_scheme="dark", viewport=paper_size) as opened:
        opened.page.emulate_media(media="print", color_scheme="dark")
        assert opened.page.evaluate(TOO_WIDE) == 0
        for control in ("nav", ".filters", "#more"):
            assert not opened.page.locator(control).is_visible()
        assert opened.page.locator("#slices table").first.is_visible()
        ink = opened.page.evaluate("getComputedStyle(document.body).color")
        paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ink, paper) == ("rgb(31, 35, 40)", "rgb(255, 255, 255)")


def test_without_javascript_the_figures_are_there(browser: Any, report: Path) -> None:
    with Opened(browser, report, java_script_enabled=False) as opened:
        text = opened.page.inner_text("main")
        assert "boundary off" in text
        assert "The list of questions needs JavaScript" in text
