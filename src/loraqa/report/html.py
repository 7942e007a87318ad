"""A report in one HTML file, without scripts or other files, for phones and for dark mode."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from loraqa.files import write_text
from loraqa.report.plots import to_svg
from loraqa.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Highlights:
    """A few values in large type, each with a short name, for example `("F1", "3.1 → 92.4")`."""

    values: Sequence[tuple[str, str]]

    def to_html(self) -> str:
        """Return the values side by side."""
        tiles = (
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
            for name, value in self.values
        )
        return f'<dl class="highlights">{"".join(tiles)}</dl>'


@dataclass(frozen=True, slots=True)
class Text:
    """A heading and paragraphs; empty lines separate the paragraphs of `body`."""

    title: str
    body: str

    def to_html(self) -> str:
        """Return the heading and the paragraphs."""
        paragraphs = (f"<p>{html.escape(part)}</p>" for part in self.body.split("\n\n"))
        return _heading(self.title) + "\n".join(paragraphs)


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure; `caption` describes it, also for screen readers."""

    figure: "Figure"
    caption: str

    def to_html(self) -> str:
        """Return the figure as inline SVG."""
        caption = html.escape(self.caption)
        return (
            f'<figure role="img" aria-label="{caption}">{to_svg(self.figure)}'
            f"<figcaption>{caption}</figcaption></figure>"
        )


@dataclass(frozen=True, slots=True)
class Example:
    """A question with the model's answer and the annotators' answers.

    Attributes:
        context: the text that the question is about.
        question: the question.
        answer: the model's answer; empty for "no answer".
        start: character offset of `answer` in `context`, None if the context does not contain it.
        right: the annotators' answers; empty if the context does not answer the question.
    """

    context: str
    question: str
    answer: str
    start: int | None
    right: Sequence[str]

    def to_html(self) -> str:
        """Return question and answers, and below them the context with the answer marked."""
        right = " / ".join(dict.fromkeys(self.right)) or "no answer"
        return (
            f"<details open><summary><b>{html.escape(self.question)}</b>"
            f'<br><span class="answer">{html.escape(self.answer) or "no answer"}</span>'
            f'<span class="right">annotated: {html.escape(right)}</span></summary>'
            f"<blockquote>{self._marked_context()}</blockquote></details>"
        )

    def _marked_context(self) -> str:
        if self.start is None or not self.answer:
            return html.escape(self.context)
        end = self.start + len(self.answer)
        if self.context[self.start : end] != self.answer:
            raise ValueError(f"{self.answer!r} is not at character {self.start} of its context")
        before, answer, after = map(
            html.escape,
            (self.context[: self.start], self.answer, self.context[end:]),
        )
        return f"{before}<mark>{answer}</mark>{after}"


@dataclass(frozen=True, slots=True)
class Examples:
    """A heading and examples of answered questions."""

    title: str
    examples: Sequence[Example]

    def to_html(self) -> str:
        """Return the heading and the examples, one below the other."""
        return _heading(self.title) + "\n".join(example.to_html() for example in self.examples)


Section: TypeAlias = Highlights | Text | Table | Plot | Examples


@dataclass(frozen=True, slots=True)
class Report:
    """A page: title, subtitle, and sections from top to bottom."""

    title: str
    subtitle: str
    sections: Sequence[Section]

    def to_html(self) -> str:
        """Return the whole page; all given text is escaped."""
        title, subtitle = html.escape(self.title), html.escape(self.subtitle)
        sections = "\n".join(
            f"<section>\n{_section(section)}\n</section>" for section in self.sections
        )
        return PAGE.format(title=title, subtitle=subtitle, style=STYLE, sections=sections)

    def save(self, path: Path) -> None:
        """Write the page atomically."""
        write_text(path, self.to_html())


def _section(section: Section) -> str:
    if isinstance(section, Table):
        return f'{_heading(section.title)}<div class="wide">{section.to_html()}</div>'
    return section.to_html()


def _heading(title: str) -> str:
    return f"<h2>{html.escape(title)}</h2>\n"


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{subtitle}</p>
</header>
<main>
{sections}
</main>
</body>
</html>
"""

STYLE = """
:root {
  --page: #f4f5f7; --card: #fff; --ink: #1f2328; --soft: #5c6570; --line: #d9dde2;
  --accent: #0072b2; --mark: #ffe08a; --mark-ink: #1f2328;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0e1116; --card: #171b22; --ink: #e4e7eb; --soft: #9aa4b0; --line: #30363f;
    --accent: #56b4e9; --mark: #7a5b00; --mark-ink: #fff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 48rem; padding: 1.5rem 1rem 4rem; background: var(--page);
  color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: break-word;
}
h1 { margin: 0; font-size: 1.7rem; line-height: 1.25; }
h2 { margin: 0 0 .75rem; font-size: 1.15rem; }
header p { margin: .25rem 0 1.5rem; color: var(--soft); }
section > :last-child { margin-bottom: 0; }
section {
  margin: 0 0 1rem; padding: 1.1rem 1.25rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem;
}
.highlights { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 0; }
.highlights dt { color: var(--soft); font-size: .875rem; }
.highlights dd {
  margin: 0; color: var(--accent); font-size: 1.6rem; font-weight: 650; line-height: 1.3;
}
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .925rem; }
th, td { padding: .35rem 1.2rem .35rem 0; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; }
td:first-child, td.number { white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
th {
  color: var(--soft); font-weight: 600; vertical-align: bottom;
  border-bottom: 1px solid var(--line);
}
tbody tr + tr td { border-top: 1px solid var(--line); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { margin-top: .5rem; color: var(--soft); font-size: .875rem; }
details + details { margin-top: 1rem; padding-top: 1rem; border-top: 1px solid var(--line); }
summary { cursor: pointer; }
.answer { color: var(--accent); font-weight: 650; margin-right: .75rem; }
.right { color: var(--soft); font-size: .875rem; }
blockquote {
  margin: .6rem 0 0; padding-left: .9rem; border-left: 3px solid var(--line);
  color: var(--soft); white-space: pre-wrap;
}
mark { background: var(--mark); color: var(--mark-ink); border-radius: .2rem; padding: 0 .15rem; }
"""
