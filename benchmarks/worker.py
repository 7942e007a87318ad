"""One job in a process of its own: `python -m benchmarks.worker MODULE.FUNCTION OPTIONS`.

The function, one of this package's, gets the options (a JSON object) as keywords. What it returns
is printed as one line of JSON; whatever else it prints goes to standard error.
"""

import json
import sys
from contextlib import redirect_stdout
from importlib import import_module


def main() -> None:
    """Run the job that the command line names."""
    module, function = sys.argv[1].split(".")
    options = json.loads(sys.argv[2])
    with redirect_stdout(sys.stderr):
        result = getattr(import_module(f"benchmarks.{module}"), function)(**options)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
