"""Pages of HTML as they are written, and how a browser shows them."""

from html import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraqa.documents.html import read_html
from loraqa.errors import InputError


def text(page: str, encoding: str = "utf-8") -> str:
    return read_html(page.encode(encoding), "page.html").text


@given(st.lists(st.text(st.sampled_from("ab<>&;é😀\"' ")), min_size=1))
def test_each_paragraph_is_a_line(paragraphs: list[str]) -> None:
    shown = [" ".join(each.split()) for each in paragraphs]
    page = "".join(f"<p>{escape(each)}</p>\n" for each in paragraphs)
    if any(shown):
        assert text(page) == "\n".join(filter(None, shown))
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


def test_a_large_page_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraqa.documents.html._LARGEST", 2**20)
    assert text("a" * 2**20)
    with pytest.raises(InputError, match=r"^page\.html has more than 1 MiB of HTML; split it"):
        text("a" * (2**20 + 1))
