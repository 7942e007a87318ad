"""Check the questions of every format and group them by context."""

import hashlib
import json
from collections import Counter
from typing import Any

from loraqa.errors import quote
from loraqa.squad.checks import MADE_ID, Checks, Place, Unplaced
from loraqa.squad.columns import by_meaning
from loraqa.squad.golds import answer_nodes, is_absent, is_empty, truth, whole_number
from loraqa.squad.lookalikes import AnswerFinder
from loraqa.squad.passage import Answer, Passage, Question, Version


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
        self.unplaced: list[Unplaced] = []
        self.made_ids: set[str] = set()
        self.order: list[str] = []
        self._questions: dict[str, dict[str, Question]] = {}
        self._titles: dict[str, str] = {}
        self._first_use: dict[str, Place] = {}
        self._finder = AnswerFinder("")

    def passages(self) -> tuple[Passage, ...]:
        """Return one passage per context with questions, in order of first appearance."""
        return tuple(
            Passage(context, tuple(questions.values()), self._titles[context])
            for context, questions in self._questions.items()
        )

    def place_of(self, id: str) -> Place:
        """Return where the question with an id was first."""
        return self._first_use[id]

    def title(self, node: dict[str, Any], place: Place) -> str:
        """Return the title; empty if it is missing, which is allowed, or has a problem."""
        if is_absent(node.get("title")):
            return ""
        title = self.field(node, "title", str, place)
        return title if title and self.is_clean(title, "title", place) else ""

    def context(self, node: dict[str, Any], place: Place) -> str | None:
        """Return the context, or report a problem and return None."""
        known = node.get("context")
        if type(known) is str and known in self._questions:
            return known  # It was checked before, and may be long.
        return self.text(node, "context", place)

    def question(
        self, node: Any, place: Place, context: str | None, title: str, column: str = ""
    ) -> None:
        """Add a question in the form of official JSON, or skip it.

        The question is skipped if it has a problem or if `context` is None. The caller passes
        None if it has already reported a problem with the context or the answers. `column` is that
        of the answers' texts, if these and their offsets stand in columns of their own.
        """
        if not self.has_type(node, dict, place):
            self.skipped["questions"] += 1
            return
        try:
            node = by_meaning(node)
        except ValueError as error:
            self.report(place, str(error))
            self.skipped["questions"] += 1
            return
        text = self.text(node, "question", place._replace(id=given_id(node)))
        id = self._id(node, place, context, text)
        place = Place(place.path, place.record, id)
        before = len(self.unplaced)
        found = None if context is None else self._answers(node, place, context, column)
        if (
            context is not None
            and id is not None
            and text is not None
            and found is not None
            and self._add(Question(id, text, *found), context, place)
        ):
            self._titles.setdefault(context, title)
        else:
            self.skipped["questions"] += 1
            del self.unplaced[before:]

    def _add(self, question: Question, context: str, place: Place) -> bool:
        """Add a question, or its answers to the same question; report another one with its id."""
        first_use = self._first_use.setdefault(question.id, place)
        if first_use is place:
            self._questions.setdefault(context, {})[question.id] = question
            self.order.append(question.id)
            return True
        same = self._questions.get(context, {}).get(question.id)
        first = first_use._replace(id=None)
        if same is None or same.text != question.text:
            self.report(place, f"the id is already used by {first}")
            return False
        if same.answerable != question.answerable:
            here, there = ("an", "none") if question.answerable else ("no", "one")
            self.report(place, f"the question has {here} answer here, but {there} in {first}")
            return False
        self._questions[context][question.id] = Question(
            same.id, same.text, same.answers + question.answers, same.golds + question.golds
        )
        return True

    def _id(
        self, node: dict[str, Any], place: Place, context: str | None, text: str | None
    ) -> str | None:
        """Return the id as text; made from context and question if there is none."""
        given = given_id(node)
        if given is not None:
            return self.text({"id": given}, "id", place)
        if not is_empty(node.get("id")):
            self.has_type(node["id"], str, place.inside("id"))
            return None
        if context is None or text is None:
            return None
        content = json.dumps([context, text]).encode()
        made = f"{MADE_ID}{hashlib.sha256(content).hexdigest()[:24]}"
        self.made_ids.add(made)
        return made

    def _answers(
        self, node: dict[str, Any], place: Place, context: str, column: str
    ) -> tuple[tuple[Answer, ...], tuple[str, ...]] | None:
        """Return the answers that have a place, and the texts of all valid ones.

        Return None if they contradict `is_impossible` or the version, or are all invalid.
        """
        if "answers" not in node:
            self.report(place, "'answers' is missing")
            return None
        nodes = answer_nodes(node["answers"], place.inside(column or "answers"), self)
        if nodes is None or not self._answerability_agrees(node, bool(nodes), place):
            return None
        golds, answers = [], []
        for number, each in enumerate(nodes):
            places = _places(place, column, f"[{number}]" if len(nodes) > 1 or not column else "")
            given = self._answer(each, *places)
            if given is not None:
                golds.append(given[0])
                answers.append(self._place(*given, *places, context))
        if nodes and not golds:
            return None
        self.skipped["answers"] += len(nodes) - len(golds)
        return tuple(answer for answer in answers if answer is not None), tuple(golds)

    def _answerability_agrees(self, node: dict[str, Any], answered: bool, place: Place) -> bool:
        """Return whether answers, version and the keys that may say so agree."""
        for key, means_answered in (("is_impossible", False), ("is_answerable", True)):
            value = truth(node.get(key))
            if value is None:
                continue
            if not self.has_type(value, bool, place.inside(key)):
                return False
            if (value == means_answered) != answered:
                has = "answers" if answered else "no answer"
                self.report(place, f"{key} is {str(value).lower()}, but the question has {has}")
                return False
        if self.version == "1.1" and not answered:
            self.report(place, "the question has no answer, which SQuAD v1.1 does not allow")
            return False
        return True

    def _answer(self, node: Any, place: Place, start_place: Place) -> tuple[str, int | None] | None:
        """Return text and offset of an answer, whose places in the source are given.

        Without an offset, which is None then, blanks around the text do not belong to it.
        """
        if not self.has_type(node, dict, place):
            return None
        text = self.field(node, "text", str, place)
        if text is None:
            return None
        if not text.strip():
            self.report(place, "the answer is empty")
            return None
        if not self.is_clean(text, "answer", place):
            return None
        given = node.get("answer_start")
        if is_empty(given):
            return text.strip(), None
        start = whole_number(given)
        if start is not None:
            return text, start
        if type(given) in (float, str):
            self.report(start_place, f"is {quote(str(given))}, must be a whole number")
        else:
            self.has_type(given, int, start_place)
        return None

    def _place(
        self, text: str, start: int | None, place: Place, start_place: Place, context: str
    ) -> Answer | None:
        """Return the answer at its place in the context, or None if it has none."""
        if start is not None and start >= 0 and context.startswith(text, start):
            return Answer(text, start)
        if self._finder.context != context:
            self._finder = AnswerFinder(context)
        spans = self._finder.spans(text, start)
        if len(spans) == 1:
            (begin, end), *_ = spans
            answer = Answer(context[begin:end], begin)
            self.repaired += start is not None or answer.text != text
            return answer
        where = "has no offset" if start is None else f"is not at character {start}"
        twice = f"{where}, and the context contains it more than once"
        place, reason = (start_place, twice) if spans else (place, "is not in the context")
        reason = f"the answer {quote(text)} {reason}"
        # Exports write -1 for an offset that they do not know.
        repeated = bool(spans) and (start is None or start < 0)
        self.unplaced.append(Unplaced(place, reason, text, repeated))
        return None


def _places(question: Place, column: str, index: str) -> tuple[Place, Place]:
    """Return the places of an answer and its offset: in columns of their own, or in a list."""
    if column:
        return question.inside(f"{column}{index}"), question.inside(f"answer_start{index}")
    answer = question.inside(f"answers{index}")
    return answer, answer.inside("answer_start")


def given_id(node: dict[str, Any]) -> str | None:
    """Return the id as text if it is text that is not empty, or a whole number."""
    id = node.get("id")
    if type(id) is float and id.is_integer():
        id = int(id)
    return str(id) if type(id) in (str, int) and not is_empty(id) else None
