"""Pages of HTML as they are written, and how a browser shows them."""

from html import escape
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraqa.documents.html import read_html
from loraqa.errors import InputError
from loraqa.prompt.encode import _END_OF_PARAGRAPH


def text(page: str, encoding: str = "utf-8") -> str:
    return read_html(page.encode(encoding), "page.html").text


@given(st.lists(st.text(st.sampled_from("ab<>&;é😀\"' ")), min_size=1))
def test_a_blank_line_is_between_paragraphs(paragraphs: list[str]) -> None:
    shown = [" ".join(each.split()) for each in paragraphs]
    page = "".join(f"<p>{escape(each)}</p>\n" for each in paragraphs)
    if any(shown):
        assert text(page) == "\n\n".join(filter(None, shown))
    else:
        with pytest.raises(InputError, match="HTML without text"):
            text(page)


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("<p>The old\n  town</p>", "The old town"),
        ("The <b>R</b>uth<i> Olen</i>", "The Ruth Olen"),
        ("H<sub>2</sub>O", "H2O"),
        ("caf&eacute;&nbsp;&#x20AC;&shy;5", "café €5"),
        ("one<br>two", "one\ntwo"),
        ("<ul><li>one<li>two</ul>", "one\ntwo"),
        ("<div>a<div>b</div>c</div>", "a\nb\nc"),
        ("<table><tr><th>Name<th>Year<tr><td>Ruth<td>1203</table>", "Name Year\nRuth 1203"),
        ("<h1>A</h1><h2>B</h2><p>one</p>\n\n\n<p>two</p>", "A\n\nB\n\none\n\ntwo"),
        ("<p>one</p><ul><li>a<li>b</ul><ol><li>c</ol><p>two", "one\n\na\nb\nc\n\ntwo"),
        ("<p>one<br><br><br>two</p><p>&nbsp;</p><p></p><p>three", "one\n\ntwo\n\nthree"),
        ("<dl><dt>a<dd><p>b</p></dd></dl><pre>c\n\n\nd</pre>", "a\n\nb\n\nc\n\nd"),
        (
            "<table><tr><TD class=x>\n<p>a <b>b</b></p>\n</td><td><p>c</p></td></tr>"
            "<tr><td>d<p>e</p></td><td><p>f<p>g</p></td></table><p>h",
            "a b c\nd\n\ne\n\nf\n\ng\n\nh",
        ),
        ("<p>one</p><table><tr><td>a<td>b<tr><td>c</table><p>two", "one\n\na b\nc\n\ntwo"),
        ("<h2>Mills<a class='headerlink' href='#m' title='Link'>¶</a></h2>", "Mills"),
        ("<dl><dt>mill()<a class=headerlink href=#m>¶</a><dd>old</dl>", "mill()\nold"),
        ("<h2 class=anchor>Mills<a href=#m class=hash-link>#</a></h2>", "Mills"),
        ("<h2><a class=doc-anchor href=#m>§</a>Mills</h2>", "Mills"),
        ("<p><a href=#c>C#</a> and § 5", "C# and § 5"),
        ("<script>var x</script><style>p{}</style><!-- c --><p>a", "a"),
        ("<nav><a href=x>Home</a></nav><main>a</main>", "a"),
        ("<p hidden>b</p><p>a", "a"),
        ("<title>t</title><body>a", "a"),
        ("a&#0;b&#xD800;c", "a\ufffdb\ufffdc"),
        ("<div>" * 5000 + "deep" + "</div>" * 5000, "deep"),
    ],
)
def test_it_reads_as_a_browser_shows_it(page: str, expected: str) -> None:
    assert text(page) == expected


@pytest.mark.parametrize(
    ("meta", "encoding"),
    [
        ("", "utf-8"),
        ("", "utf-8-sig"),
        ("", "utf-16"),
        ("<meta charset=utf-8>", "utf-8"),
        ("<meta charset=iso-8859-1>", "cp1252"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=windows-1252">', "cp1252"),
        ("<meta charset=koi8-u>", "koi8-u"),
    ],
)
def test_encodings(meta: str, encoding: str) -> None:
    word = "Мельница" if encoding == "koi8-u" else "Müller “x” costs €"
    assert text(f"<html><head>{meta}</head><body>{word}", encoding) == word


def test_long_pages_are_cut_between_paragraphs() -> None:
    """Offsets of answers count in this text, so each paragraph is in it, whole and once."""
    paragraphs = [f"The mill number {number} is old." for number in range(50)]
    read = text("".join(f"<p>{each}</p>" for each in paragraphs))
    starts = [0, *(found.end() for found in _END_OF_PARAGRAPH.finditer(read)), len(read)]
    assert [read[start:end].rstrip() for start, end in pairwise(starts)] == paragraphs


def test_a_large_page_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraqa.documents.html._LARGEST", 2**20)
    assert text("a" * 2**20)
    with pytest.raises(InputError, match=r"^page\.html has more than 1 MiB of HTML; split it"):
        text("a" * (2**20 + 1))
