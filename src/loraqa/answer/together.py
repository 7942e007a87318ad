"""Score answers to a sample whose contexts several processes share."""

from dataclasses import dataclass

from loraqa.answer.decode import Strategy
from loraqa.answer.progress import Progress
from loraqa.answer.reader import Reader
from loraqa.distributed.ranks import Ranks
from loraqa.prompt.shares import shares
from loraqa.squad import Passage, QADataset, Scores, score

Texts = dict[str, str]
"""Question id to answer."""


@dataclass(frozen=True)
class SharedScoring:
    """Answers to a sample and their official scores, which equal those of one process.

    It is a `Scoring` of the training loop.

    Attributes:
        reader: the model, the same in all processes.
        sample: the questions.
        strategy: how answers are found.
        ranks: the processes.
        progress: called with the number of this process's questions that are answered.
    """

    reader: Reader
    sample: QADataset
    strategy: Strategy
    ranks: Ranks
    progress: Progress

    def answer(self) -> Texts:
        """Answer the questions on this process's contexts."""
        passages = self.sample.passages
        own = shares([_characters(passage) for passage in passages], self.ranks.size)
        read = self.reader.read(
            [passages[index] for index in own[self.ranks.rank]],
            self.strategy,
            progress=self.progress,
        )
        return {first.question_id: first.text for first, *_ in read}

    def merge(self, own: Texts | None) -> Scores | None:
        """Score the answers of all processes; return None if one of them has none.

        Raises:
            PeerError: another process has ended.
        """
        texts: Texts = {}
        for answered in self.ranks.gather(own, "the answers to dev questions"):
            if answered is None:
                return None
            texts |= answered
        return score(texts, self.sample)


def _characters(passage: Passage) -> int:
    return len(passage.context) + sum(len(question.text) for question in passage.questions)
