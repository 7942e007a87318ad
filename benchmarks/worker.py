"""Run one job in its own process: `python -m benchmarks.worker MODULE.FUNCTION OPTIONS`.

The function is one of this package's; it gets the options, a JSON object, as keyword arguments. Its
result is printed as one line of JSON; everything else it prints goes to standard error.
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
