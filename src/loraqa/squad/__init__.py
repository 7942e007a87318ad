"""SQuAD data: passages with questions, strict readers and writers, and the official scores."""

from loraqa.squad.dataset import QADataset
from loraqa.squad.official import write_official
from loraqa.squad.overlap import Overlap, Seen, overlap
from loraqa.squad.passage import Answer, Passage, Question, Version
from loraqa.squad.predictions import read_no_answer_probabilities, read_predictions
from loraqa.squad.read import check_there, read_passages
from loraqa.squad.score import (
    BestScore,
    QuestionScore,
    Scores,
    check_ids,
    normalize_answer,
    score,
    score_question,
    token_f1,
)

__all__ = [
    "Answer",
    "BestScore",
    "Overlap",
    "Passage",
    "QADataset",
    "Question",
    "QuestionScore",
    "Scores",
    "Seen",
    "Version",
    "check_ids",
    "check_there",
    "normalize_answer",
    "overlap",
    "read_no_answer_probabilities",
    "read_passages",
    "read_predictions",
    "score",
    "score_question",
    "token_f1",
    "write_official",
]
