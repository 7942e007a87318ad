"""Check the questions of every format and group them by context."""

import re
from collections import Counter
from typing import Any

from loraqa.errors import quote
from loraqa.squad.checks import Checks, Place
from loraqa.squad.passage import Answer, Passage, Question, Version

# Tab, newline and carriage return are ordinary white space in SQuAD's contexts.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class Intake(Checks):
    """Checks questions in the order of their source and groups them by context.

    Parts with a problem are left out and counted in `skipped`; the caller decides whether to
    accept that. `version` is the version that the source declares, None if it declares none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.version: Version | None = None
        self.skipped: Counter[str] = Counter()
        self.repaired = 0
        self.order: list[str] = []
        self._questions: dict[str, list[Question]] = {}
        self._titles: dict[str, str] = {}
        self._first_use: dict[str, Place] = {}

    def passages(self) -> tuple[Passage, ...]:
        """Return one passage per context with questions, in order of first appearance."""
        return tuple(
            Passage(context, tuple(questions), self._titles[context])
            for context, questions in self._questions.items()
        )

    def title(self, node: dict[str, Any], place: Place) -> str:
        """Return the title; empty if it is missing, which is allowed, or has a problem."""
        if node.get("title") is None:
            return ""
        title = self.field(node, "title", str, place)
        return title if title and self._is_clean(title, "title", place) else ""

    def context(self, node: dict[str, Any], place: Place) -> str | None:
        """Return the context, or report a problem and return None."""
        return self._text(node, "context", place)

    def question(self, node: Any, place: Place, context: str | None, title: str) -> None:
        """Add a question in the form of official JSON, or skip it.

        The question is skipped if it has a problem or if `context` is None. The caller passes
        None if it has already reported a problem with the context or the answers.
        """
        if not self.has_type(node, dict, place):
            self.skipped["questions"] += 1
            return
        id = self._id(node, place)
        place = Place(place.path, place.record, id)
        text = self._text(node, "question", place)
        answers = None if context is None else self._answers(node, place, context)
        if context is None or id is None or text is None or answers is None:
            self.skipped["questions"] += 1
            return
        self._titles.setdefault(context, title)
        self._questions.setdefault(context, []).append(Question(id, text, answers))
        self.order.append(id)

    def _id(self, node: dict[str, Any], place: Place) -> str | None:
        id = self._text(node, "id", place)
        if id is None:
            return None
        first_use = self._first_use.setdefault(id, place)
        if first_use is not place:
            first = first_use._replace(id=None)
            self.report(place._replace(id=id), f"the id is already used by {first}")
            return None
        return id

    def _text(self, node: dict[str, Any], key: str, place: Place) -> str | None:
        text = self.field(node, key, str, place)
        if text is None:
            return None
        if not text.strip():
            self.report(place, f"the {key} is empty")
            return None
        return text if self._is_clean(text, key, place) else None

    def _is_clean(self, text: str, key: str, place: Place) -> bool:
        found = _FORBIDDEN.search(text)
        if not found:
            return True
        code = ord(found[0])
        name = "lone surrogate" if code >= 0xD800 else "control character"
        self.report(place, f"the {key} has a {name} (U+{code:04X}) at character {found.start()}")
        return False

    def _answers(
        self, node: dict[str, Any], place: Place, context: str
    ) -> tuple[Answer, ...] | None:
        """Return the valid answers.

        Return None if they are not a list, contradict `is_impossible` or the version, or are all
        invalid.
        """
        nodes = self.field(node, "answers", list, place)
        if nodes is None or not self._answerability_agrees(node, bool(nodes), place):
            return None
        found = [
            self._answer(answer, place.inside(f"answers[{number}]"), context)
            for number, answer in enumerate(nodes)
        ]
        answers = tuple(answer for answer in found if answer is not None)
        if nodes and not answers:
            return None
        self.skipped["answers"] += len(nodes) - len(answers)
        return answers

    def _answerability_agrees(self, node: dict[str, Any], answered: bool, place: Place) -> bool:
        """Return whether answers, version and `is_impossible` (which may be missing) agree."""
        given = "is_impossible" in node
        impossible = self.field(node, "is_impossible", bool, place) if given else not answered
        if impossible is None:
            return False
        if self.version == "1.1" and (impossible or not answered):
            self.report(place, "the question has no answer, which SQuAD v1.1 does not allow")
            return False
        if impossible and answered:
            self.report(place, "is_impossible is true, but the question has answers")
            return False
        if not impossible and not answered:
            self.report(place, "is_impossible is false, but the question has no answer")
            return False
        return True

    def _answer(self, node: Any, place: Place, context: str) -> Answer | None:
        if not self.has_type(node, dict, place):
            return None
        text = self.field(node, "text", str, place)
        start = self.field(node, "answer_start", int, place)
        if text is None or start is None:
            return None
        if not text.strip():
            self.report(place, "the answer is empty")
            return None
        if start >= 0 and context.startswith(text, start):
            return Answer(text, start)
        return self._repair(text, start, place, context)

    def _repair(self, text: str, start: int, place: Place, context: str) -> Answer | None:
        """Return the answer with its offset corrected, if the context contains it exactly once.

        Otherwise report a problem and return None.
        """
        first = context.find(text)
        if first < 0:
            self.report(place, f"the answer {quote(text)} is not in the context")
            return None
        if context.find(text, first + 1) >= 0:
            problem = f"is not at character {start}, and the context contains it more than once"
            self.report(place, f"the answer {quote(text)} {problem}")
            return None
        self.repaired += 1
        return Answer(text, first)
