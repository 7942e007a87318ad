"""Run a script whose calls are watched.

`python -m tests.reliability.watched FOLDER SCRIPT ANSWERS`

Prints the exit status, what the script wrote, and its calls, as JSON.
"""

import json
import sys
from pathlib import Path

from reliability.forks import run
from reliability.watching import Call, with_library


def main() -> None:
    """See above."""
    place, script, answers = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    with_library(place.parent, "tests.reliability.watched")
    calls: list[str] = []

    def answer(call: Call) -> int:
        names = [
            Path(p).relative_to(place).as_posix() for p in call[1:] if p.startswith(str(place))
        ]
        calls.append(" ".join([call.name, *names]))
        return int(answers.get(str(len(calls) - 1), 0))

    ended = run(lambda: exec(script), place, answer=answer)
    sys.stdout.write(json.dumps({"status": ended.status, "said": ended.said, "calls": calls}))


if __name__ == "__main__":
    main()
