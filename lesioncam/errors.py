"""Errors that the user can fix: one class per exit code, each printed as one line."""


class LesioncamError(Exception):
    """A failure that is reported in one line; `exit_code` is what the command returns."""

    exit_code = 1


class InputError(LesioncamError):
    """Bad input, or a request that is refused. Names the flag, file or field, and the fix."""

    exit_code = 2


class RunFailedError(LesioncamError):
    """The run failed; the same command continues from what is already written."""

    exit_code = 1


def failed_by(error: Exception) -> RunFailedError:
    """The error of a run whose input or output became unusable while it ran."""
    return RunFailedError(
        f"the run failed: {first_line(error)}; fix that and run the same command again"
    )


def first_line(error: Exception) -> str:
    """The message without a worker's traceback."""
    return str(error).partition("\n")[0]
