"""An adapter's info, for several tests."""

from loraqa.adapter.info import AdapterInfo, BaseInfo

INFO = AdapterInfo(
    base=BaseInfo(
        source="/models/gpt2", revision=None, dtype="float32", random_weights=False, sha256="ab12"
    ),
    template="{context} Q: {question} A: {answer}",
    max_length=250,
    stride=20,
    max_answer_tokens=32,
    version="1.1",
)
