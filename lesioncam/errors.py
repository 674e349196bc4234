"""What can go wrong in a way the user can mend: one error per exit code, printed as one line."""


class LesioncamError(Exception):
    """A failure that is told to the user in one line; `exit_code` is what the command returns."""

    exit_code = 1


class InputError(LesioncamError):
    """Bad input, or a request that is refused. Names the flag, file or field, and the mend."""

    exit_code = 2


class RunFailedError(LesioncamError):
    """The run could not go on; the same command again continues from what is already written."""

    exit_code = 1
