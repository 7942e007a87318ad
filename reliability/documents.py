"""Generated documents of every format that loraqa reads, right ones and wrong ones.

A document starts as a right one with strange texts in it; then parts are replaced, removed or
moved, and the file is cut, flipped or encoded otherwise. Everything follows from a generator of
random numbers.
"""

import csv
import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from html import escape
from typing import Any

_LETTERS = (
    "abc ABC 123 .,;:'\"!?()-–—“”„ \t\n\r\xa0\xad\u200b\u200d\u2028\ufffd"
    "éß\u0301\u0327Ωжשלמ العکক্ষकलाไทยລາວខ្មែរမြန်မာ"
    "中文日本語한국어ﬁＡ①½𝒜😀👩‍👩‍👧🇩🇪\U0010ffff\U000e0001"
)
_CONTROLS = "\x00\x07\x0b\x1f\x7f\x85\x9f\ufeff\ufffe\ud800"
_WORDS = (
    *("the", "river", "Rene\u0301", "कला", "1889", "St. Louis", "$5", "<|endoftext|>", "</s>"),
    *("[PAD]", "{context}", "{{", "%s", "null", "NaN", "array([1])", "=1+1", "'", '"', "\\"),
)
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 10**40, -(2**63), 1e308, float("nan"), float("inf"), ""),
    *(" ", "x", "0", "\ud800", [], {}, [[]], [None], {"text": []}, {"": None}, "1.1", "v2.0"),
)


def text(chance: random.Random, most: int = 12) -> str:
    """Return some words, strange ones among them."""
    words = [_word(chance) for _ in range(chance.randint(1, most))]
    return chance.choice((" ", " ", " ", "", "\n", ". ")).join(words)


def _word(chance: random.Random) -> str:
    kind = chance.random()
    if kind < 0.6:
        return chance.choice(_WORDS)
    if kind < 0.605:
        return chance.choice(_CONTROLS)
    return "".join(chance.choices(_LETTERS, k=chance.randint(1, 8)))


def official(chance: random.Random) -> Any:
    """Return official SQuAD JSON."""
    paragraphs = [_paragraph(chance) for _ in range(chance.randint(1, 3))]
    version = chance.choice(("v2.0", "2.0", "v2.0", "1.1", "1.0"))
    return {"version": version, "data": [{"title": text(chance, 2), "paragraphs": paragraphs}]}


def _paragraph(chance: random.Random) -> dict[str, Any]:
    context = text(chance, 30)
    return {"context": context, "qas": [_qa(chance, context) for _ in range(chance.randint(1, 4))]}


def _qa(chance: random.Random, context: str) -> dict[str, Any]:
    answers = [_answer(chance, context) for _ in range(chance.choice((0, 1, 1, 1, 3)))]
    node: dict[str, Any] = {"id": _id(chance), "question": text(chance), "answers": answers}
    if chance.random() < 0.5:
        node["is_impossible"] = not answers
    return node


def _id(chance: random.Random) -> Any:
    number = chance.randrange(10**6)
    return number if chance.random() < 0.05 else f"q{number}"


def _answer(chance: random.Random, context: str) -> dict[str, Any]:
    places = [place for place, letter in enumerate(context) if not letter.isspace()] or [0]
    start = chance.choice(places)
    moved = start + (chance.choice((1, -1, 1000)) if chance.random() < 0.03 else 0)
    return {"text": context[start : start + chance.randint(1, 12)], "answer_start": moved}


def records(chance: random.Random) -> list[dict[str, Any]]:
    """Return records with the hub's columns, or with those of own data."""
    form = chance.choice((_hub_record, _hub_record, _flat_record, _own_record))
    return [form(chance, text(chance, 20)) for _ in range(chance.randint(1, 5))]


def _hub_record(chance: random.Random, context: str) -> dict[str, Any]:
    qa = _qa(chance, context)
    lists = {key: [answer[key] for answer in qa["answers"]] for key in ("text", "answer_start")}
    return {
        "id": str(qa["id"]),
        "title": "t",
        "context": context,
        "question": qa["question"],
        "answers": lists,
    }


def _flat_record(chance: random.Random, context: str) -> dict[str, Any]:
    answer = _answer(chance, context)
    return {
        "id": str(_id(chance)),
        "context": context,
        "question": text(chance),
        "answer_text": answer["text"],
        "answer_start": answer["answer_start"],
    }


def _own_record(chance: random.Random, context: str) -> dict[str, Any]:
    answer = _answer(chance, context)["text"]
    return {"context": context, "question": text(chance), "answer": answer}


def predictions(chance: random.Random) -> Any:
    """Return answers by question id."""
    return {str(_id(chance)): text(chance) for _ in range(chance.randint(0, 5))}


def probabilities(chance: random.Random) -> Any:
    """Return no-answer probabilities by question id."""
    return {str(_id(chance)): chance.choice((0, 1, 0.5, 1e-300, -3)) for _ in range(4)}


def settings(chance: random.Random) -> Any:
    """Return settings of a run."""
    values: dict[str, Any] = {
        "seed": chance.randrange(10),
        "model": {"source": text(chance, 1), "dtype": "float32"},
        "data": {"train": "train.json", "on_bad": "skip"},
        "lora": {"rank": 8, "target_modules": ["c_attn"], "dropout": 0.1},
        "optimisation": {"learning_rate": 3e-4, "epochs": 2, "betas": [0.9, 0.99]},
        "prompt": {"template": "{context} " + text(chance, 2) + " {question} A: {answer}"},
    }
    return values


def peft_config(chance: random.Random) -> Any:
    """Return the configuration of a PEFT adapter."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": text(chance, 1),
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "target_modules": chance.choice((["c_attn"], ".*attn", "all-linear", ["(", "q_proj"])),
        "rank_pattern": {"h.0.attn": 4},
        "alpha_pattern": {},
        "bias": "none",
        "layers_to_transform": chance.choice((None, [0, 1], 1)),
        "exclude_modules": chance.choice((None, ["mlp"], "mlp")),
        "init_lora_weights": True,
        "fan_in_fan_out": False,
    }


def adapter_info(chance: random.Random) -> Any:
    """Return `loraqa.json`."""
    return {
        "base": {
            "source": text(chance, 1),
            "revision": None,
            "dtype": "float32",
            "random_weights": False,
            "sha256": "0" * 64,
        },
        "template": "Context: {context} Question: {question} Answer: {answer}",
        "max_length": 256,
        "stride": 64,
        "max_answer_tokens": 8,
        "version": "1.1",
    }


def changed(value: Any, chance: random.Random) -> Any:
    """Return JSON values of which one part is replaced, removed, repeated or renamed."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        what = chance.random()
        rest = {k: v for k, v in value.items() if k != key}
        if what < 0.1:
            return rest
        if what < 0.2:
            return rest | {text(chance, 1): value[key]}
        return {k: changed(v, chance) if k == key else v for k, v in value.items()}
    if isinstance(value, list) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        what = chance.random()
        if what < 0.1:
            return value[:place] + value[place + 1 :]
        if what < 0.2:
            return [*value, value[place]]
        return [*value[:place], changed(value[place], chance), *value[place + 1 :]]
    if isinstance(value, str) and chance.random() < 0.3:
        return text(chance)
    return chance.choice(_ODD)


def as_json(value: Any, chance: random.Random) -> bytes:
    """Return JSON, with escapes or without."""
    return _encoded(json.dumps(value, ensure_ascii=chance.random() < 0.5), chance)


def as_lines(value: Any, chance: random.Random) -> bytes:
    """Return JSON Lines."""
    lines = value if isinstance(value, list) else [value]
    end = chance.choice(("\n", "\n", "\r\n", "\n\n"))
    escaped = chance.random() < 0.5
    return _encoded("".join(json.dumps(v, ensure_ascii=escaped) + end for v in lines), chance)


def as_csv(value: Any, chance: random.Random) -> bytes:
    """Return CSV with commas, semicolons or tabs."""
    rows = [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
    columns = list(dict.fromkeys(key for row in rows for key in row))
    dump = chance.choice((json.dumps, str))
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=chance.choice(",,,;\t"))
    writer.writerow(columns)
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        writer.writerow([dump(c) if isinstance(c, dict | list) else c for c in cells])
    return _encoded(file.getvalue(), chance)


def as_parquet(value: Any, _: random.Random) -> bytes:
    """Return Parquet; JSON Lines if the records do not form a table."""
    import pyarrow.parquet

    return _as_table(value, lambda table, sink: pyarrow.parquet.write_table(table, sink))


def as_arrow(value: Any, chance: random.Random) -> bytes:
    """Return an Arrow file or stream; JSON Lines if the records do not form a table."""
    import pyarrow

    make = chance.choice((pyarrow.ipc.new_file, pyarrow.ipc.new_stream))

    def write(table: Any, sink: Any) -> None:
        with make(sink, table.schema) as writer:
            writer.write_table(table)

    return _as_table(value, write)


def _as_table(value: Any, write: Callable[[Any, Any], None]) -> bytes:
    import pyarrow

    sink = io.BytesIO()
    try:
        write(pyarrow.Table.from_pylist(value), sink)
    # Pyarrow raises many unrelated types of errors.
    except Exception:
        return json.dumps(value).encode()
    return sink.getvalue()


def as_yaml(value: Any, chance: random.Random) -> bytes:
    """Return YAML."""
    import yaml

    dumped = yaml.dump(value, allow_unicode=chance.random() < 0.5, sort_keys=False)
    return _encoded(dumped, chance)


def as_html(value: Any, _: random.Random) -> bytes:
    paragraphs = "".join(f"<p>{escape(line)}</p>" for line in _words(value).split("\n"))
    return f"<html><body>{paragraphs}</body></html>".encode()


def as_docx(value: Any, _: random.Random) -> bytes:
    """Write the least that a Word file holds."""
    openxml = "http://schemas.openxmlformats.org"
    main = f"{openxml}/officeDocument/2006/relationships/officeDocument"
    parts = {
        "_rels/.rels": f'<Relationships xmlns="{openxml}/package/2006/relationships">'
        f'<Relationship Id="r" Type="{main}" Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{openxml}/wordprocessingml/2006/main"><w:body>'
        f"<w:p><w:r><w:t>{escape(_words(value))}</w:t></w:r></w:p></w:body></w:document>",
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            # A fixed date.
            archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


def as_pdf(value: Any, chance: random.Random) -> bytes:
    """Write pages without compression, so that noise reaches what PDFium reads."""
    from fpdf import FPDF

    pdf = FPDF()
    pdf.set_creation_date(datetime(2000, 1, 1, tzinfo=UTC))
    pdf.set_compression(False)
    pdf.set_font("Times", size=12)
    for _ in range(chance.randint(1, 3)):
        pdf.add_page()
        pdf.multi_cell(60, 6, _words(value).encode("latin-1", "replace").decode("latin-1"))
    return bytes(pdf.output())


def _words(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "replace").decode()


def zipped(content: bytes) -> bytes:
    """Return the content as a gzip file, always the same."""
    return gzip.compress(content, mtime=0)


def noise(content: bytes, chance: random.Random) -> bytes:
    """Return the content with bytes changed, cut, repeated or put in; or nothing but noise."""
    kind = chance.randrange(6)
    if kind == 0:
        return chance.randbytes(chance.randrange(400))
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 3, 20))):
        place = chance.randrange(len(changed) + 1)
        length = chance.choice((1, 1, 2, 8, 64))
        if kind == 1:
            changed[place : place + length] = chance.randbytes(length)
        elif kind == 2:
            del changed[place:]
        elif kind == 3:
            changed[place:place] = changed[place : place + length] * chance.choice((1, 2, 50))
        elif kind == 4:
            del changed[place : place + length]
        elif changed:
            changed[min(place, len(changed) - 1)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _encoded(content: str, chance: random.Random) -> bytes:
    """Return the text in UTF-8, seldom in another encoding or with a byte order mark."""
    kind = chance.randrange(40)
    if kind == 0:
        return content.encode("utf-16", "surrogatepass")
    if kind == 1:
        return content.encode("latin-1", "replace")
    if kind in (2, 3):
        return b"\xef\xbb\xbf" + content.encode("utf-8", "surrogatepass")
    return content.encode("utf-8", "surrogatepass")
