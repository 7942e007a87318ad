"""The command line: arguments in, results out. The work of each command is done elsewhere.

A module for each command, and beside them what they share. Importing PyTorch and transformers takes
seconds, so a command checks its paths before it imports them. A wrong path is reported at once.
"""

from loraqa.cli.process import main

__all__ = ["main"]
