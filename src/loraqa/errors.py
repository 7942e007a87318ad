"""The errors a user can meet. Their message is one sentence: what, where, and what to do."""


class LoraqaError(Exception):
    """The work failed. The command line exits with status 1."""

    exit_code = 1


class InputError(LoraqaError):
    """The arguments or the input are wrong. The command line exits with status 2."""

    exit_code = 2
