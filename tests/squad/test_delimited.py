"""CSV as spreadsheets and people write it."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraqa.errors import InputError
from loraqa.squad import Answer, QADataset, read_passages


def read(folder: Path, text: str) -> QADataset:
    path = folder / "data.csv"
    path.write_bytes(text.encode())
    return read_passages(path)


@pytest.mark.parametrize(
    "answer",
    ["[sic]", "[1]", "[1, 2]", "[]x", "{x | x > 0}", "{1}", "array of pointers", "[Ada", "[-1, 1)"],
)
@pytest.mark.parametrize("column", ["answers", "answer_text", "answer"])
def test_brackets_may_be_text(tmp_path: Path, answer: str, column: str) -> None:
    data = read(tmp_path, f'context|question|{column}\n"It says {answer} here."|What?|"{answer}"\n')
    assert data.questions[0].golds == (answer,)
    assert data.questions[0].answers == (Answer(answer, 8),)


@pytest.mark.parametrize("cell", ["['Ada'", '["Ada", x]', "{'text': ['Ada'}", "array(['Ada'"])
def test_broken_answers_are_refused(tmp_path: Path, cell: str) -> None:
    cell = cell.replace('"', '""')
    with pytest.raises(InputError, match="line 2: the answers are neither JSON nor Python"):
        read(tmp_path, f'context;question;answers\nBy Ada.;Who?;"{cell}"\n')


@pytest.mark.parametrize(
    "cells",
    [
        ("['Ada' 'Ada\\'s']", "[3 3]"),
        ("['Ada'\n \"Ada's\"]", "[ 3\n  3]"),
        ("array(['Ada', \"Ada's\"], dtype=object)", "array([3, 3])"),
        ("array(['Ada', \"Ada's\"], dtype='<U5')", "[np.float64(3.0), nan]"),
        ('["Ada", "Ada\'s"]', "[3, 3]"),
    ],
)
def test_arrays_as_numpy_and_pandas_print_them(tmp_path: Path, cells: tuple[str, str]) -> None:
    """Python would join the texts of `['Ada' "Ada's"]`."""
    texts, starts = (cell.replace('"', '""') for cell in cells)
    header = "context,question,answer_text,answer_start"
    data = read(tmp_path, f'{header}\nBy Ada\'s bees.,Who?,"{texts}","{starts}"\n')
    assert data.questions[0].answers == (Answer("Ada", 3), Answer("Ada's", 3))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("delimiter", "before"),
    [
        *((each, "") for each in ",;\t|"),
        (";", "sep=;\n"),
        ("^", "sep=^\n"),
        (",", '"sep=,"\n'),
        (",", "\n"),
        (";", " \n\n;;;\n"),
        ("\t", "SEP=\t\n\n"),
    ],
)
def test_delimiters_and_lines_before_the_header(
    tmp_path: Path, delimiter: str, before: str, end: str
) -> None:
    cells = [["context", "question", "answer", ""], ["By Ada", "Who?", "Ada", ""], [""] * 4]
    text = before + "\n".join(map(delimiter.join, cells)) + "\n"
    data = read(tmp_path, text.replace("\n", end))
    assert data.questions[0].answers == (Answer("Ada", 3),)
    bad = (before + delimiter.join(cells[0]) + "\nBy Ada\n").replace("\n", end)
    with pytest.raises(InputError, match=f"line {before.count(chr(10)) + 2}: has 1 fields"):
        read(tmp_path, bad)


def test_blanks_around_quoted_cells_do_not_count(tmp_path: Path) -> None:
    rows = [
        '"context" , "question", "answer" ',
        ' "By ""Ada"", , ""she"" says" ,"Who, and\n , ""why"" , ?"\t,  "Ada"',
        "  By Ada, Who?, Ada",
    ]
    first, second = read(tmp_path, "\n".join(rows)).passages
    assert first.context == 'By "Ada", , "she" says'
    assert first.questions[0].text == 'Who, and\n , "why" , ?'
    assert first.questions[0].answers == (Answer("Ada", 4),)
    assert second.context == "  By Ada"  # Blanks of cells without quotation marks are text.
    assert second.questions[0].answers == (Answer("Ada", 5),)


spaces = st.sampled_from(["", " ", "  "])
texts = st.text(st.sampled_from('a", \t;|\n'), min_size=1, max_size=8).map("x".__add__)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(texts, spaces, spaces), min_size=2, max_size=2), st.sampled_from(",;\t|"))
def test_any_text_survives_quotes_with_blanks(
    tmp_path: Path, cells: list[tuple[str, str, str]], delimiter: str
) -> None:
    row = [a + '"' + text.replace('"', '""') + '"' + b for text, a, b in cells]
    table = [["context", "question", "answer"], [*row, ""]]
    (passage,) = read(tmp_path, "\n".join(map(delimiter.join, table))).passages
    assert (passage.context, passage.questions[0].text) == tuple(text for text, *_ in cells)


def test_cells_beyond_the_header_may_be_empty(tmp_path: Path) -> None:
    data = read(tmp_path, "context,question,answer\nBy Ada,Who?,Ada,,\n,,\n")
    assert data.questions[0].answers == (Answer("Ada", 3),)
    with pytest.raises(InputError, match="line 2: has 4 fields, the first row has 3"):
        read(tmp_path, "context,question,answer\nBy Ada,Who?,Ada,Ada\n")
