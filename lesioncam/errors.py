"""Errors that the user can fix: one class per exit code, each printed as one line."""

import re

_FLAG = re.compile(r"--([a-z]+(?:-[a-z]+)*)")
_KEYWORDS = {"config": "settings"}  # that are not the flag's name


class LesioncamError(Exception):
    """A failure that is reported in one line; `exit_code` is what the command returns.

    Args:
        message: names flags, such as `--max-failed-fraction`. To a caller of the Python API the
            exception names keywords, `max_failed_fraction`.

    Attributes:
        command_line_message: the message with flags.
    """

    exit_code = 1

    def __init__(self, message: str):
        super().__init__(message)
        self.command_line_message = message

    def name_keywords(self) -> None:
        """Name keywords in place of flags in `str(self)`."""
        self.args = (_FLAG.sub(_keyword, self.command_line_message),)


def _keyword(flag: re.Match[str]) -> str:
    return _KEYWORDS.get(flag[1], flag[1].replace("-", "_"))


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
