"""Offsets and pages."""

from hypothesis import given
from hypothesis import strategies as st

from loraqa.documents import Document


@given(st.lists(st.text(st.sampled_from("ab\n"), max_size=5), min_size=1, max_size=6))
def test_every_offset_is_on_the_page_that_holds_it(texts: list[str]) -> None:
    document = Document.of_pages(texts)
    for number, (start, text) in enumerate(zip(document.pages, texts, strict=True), start=1):
        assert document.text[start : start + len(text)] == text
        for offset in range(start, start + len(text)):
            assert document.page_at(offset) == number
    assert len(document.text) == sum(map(len, texts)) + len(texts) - 1


def test_a_text_without_pages_has_no_page_numbers() -> None:
    assert Document("abc").page_at(1) is None
    assert Document.of_pages(["abc"]).page_at(None) is None


def test_a_blank_line_stands_between_pages_only_where_a_sentence_ends() -> None:
    pages = ["The mill is old.", "3. Visiting", "It is closed on", 'Mondays (and "always").', "End"]
    document = Document.of_pages(pages)
    assert document.text == (
        'The mill is old.\n\n3. Visiting\nIt is closed on\nMondays (and "always").\n\nEnd'
    )
    assert [document.text[start:].split("\n")[0] for start in document.pages] == pages
