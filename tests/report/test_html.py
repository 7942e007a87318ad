"""The one-file report: all text is escaped, nothing is loaded, answers are marked in place."""

from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraqa.report import (
    Column,
    Example,
    Examples,
    Highlights,
    Plot,
    Report,
    Table,
    Text,
)
from loraqa.report.plots import before_after

CONTEXT = "Ada <Quill> built it; Ada <Quill> & Sons own it."
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Checks that tags are balanced; collects the tags, the visible text and the marked text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.marked: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not {"src", "srcset", "onload", "onclick"} & {name for name, _ in attrs}
        if tag == "mark":
            self.marked.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if "mark" in self.open:
            self.marked[-1] += data


def report(*sections: object, title: str = "Title") -> str:
    return Report(title, "subtitle", sections).to_html()  # type: ignore[arg-type]


def example(answer: str, start: int | None, right: Sequence[str] = ("x",)) -> str:
    return Example(CONTEXT, "Who?", answer, start, right).to_html()


def whole_report() -> Report:
    figure = before_after({"exact_match": 1, "f1": 2}, {"exact_match": 3, "f1": 4})
    return Report(
        "loraqa",
        "a run",
        [
            Highlights([("F1", "2 → 4")]),
            Text("About", "One.\n\nTwo."),
            Table("Scores", (Column("EM", ".1f"),), ((3.0,),)),
            Plot(figure, "Before & after"),
            Examples("Answers", [Example(CONTEXT, "Who?", "Ada", 0, ("Ada",))]),
        ],
    )


def test_page_is_balanced_and_loads_nothing() -> None:
    page = whole_report().to_html()
    parsed = Page(page)
    assert not parsed.tags & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert "@import" not in page
    assert 'href="http' not in page
    assert "url(http" not in page


def test_sections_keep_their_order() -> None:
    text = Page(whole_report().to_html()).text
    places = [
        text.index(part)
        for part in ("2 → 4", "About", "One.", "Two.", "Scores", "Before & after", "Answers")
    ]
    assert places == sorted(places)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_any_text_is_shown_and_never_becomes_a_tag(text: str) -> None:
    page = Page(
        report(
            Highlights([(text, text)]),
            Text(text, text),
            Examples(text, [Example(f"a{text}", text, text, 1, (text,))]),
            title=text,
        )
    )
    assert page.tags == Page(report(*harmless_sections())).tags | ({"mark"} if text else set())
    assert page.text.count(text) >= 10
    assert page.marked == ([text] if text else [])


def harmless_sections() -> list[object]:
    return [
        Highlights([("a", "b")]),
        Text("a", "b"),
        Examples("a", [Example("a", "b", "", None, ())]),
    ]


def test_answer_is_marked_at_its_offset_only() -> None:
    start = CONTEXT.rindex("Ada")
    shown = example("Ada <Quill>", start)
    assert Page(shown).marked == ["Ada <Quill>"]
    before, _, after = shown.partition("<blockquote>")[2].partition("<mark>")
    assert before == "Ada &lt;Quill&gt; built it; "
    assert after.startswith("Ada &lt;Quill&gt;</mark> &amp; Sons own it.")


def test_a_wrong_offset_is_refused() -> None:
    with pytest.raises(ValueError, match="'Ada' is not at character 3 of its context"):
        example("Ada", 3)


def test_answer_outside_the_context_marks_nothing() -> None:
    parsed = Page(example("Bob", None))
    assert parsed.marked == []
    assert CONTEXT in parsed.text


def test_unanswerable_and_unanswered_questions_show_no_answer() -> None:
    assert "annotated: no answer" in Page(example("Ada", 0, right=())).text
    assert "no answer" in Page(example("", None)).text


def test_equal_annotations_are_shown_once() -> None:
    assert "annotated: Ada / Quill" in Page(example("Ada", 0, ("Ada", "Quill", "Ada"))).text


def test_report_is_written_completely_and_reproducibly(tmp_path: Path) -> None:
    path = tmp_path / "out" / "report.html"
    whole_report().save(path)
    first = path.read_bytes()
    whole_report().save(path)
    assert path.read_bytes() == first
    assert first.decode().endswith("</html>\n")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
