"""Flags: how a command line is parsed, and the types of its values."""

import argparse
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from lesioncam.arguments import check_argument
from lesioncam.errors import InputError

_PATHS = ("URI", "CSV", "TOML", "DIR")  # metavars of flags that shells complete with file names


class Parser(argparse.ArgumentParser):
    """Accepts no abbreviated flags, and raises InputError for bad ones."""

    def __init__(self, **options: Any):
        super().__init__(
            **options,
            add_help=False,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Report an unknown flag before a missing one: it may be that one, misspelled."""
        for argument in arguments:
            name = argument.partition("=")[0]
            if _looks_like_flag(name) and name not in self._option_string_actions:
                guess = hint(name, self._option_string_actions, self.prog)
                raise InputError(f"unknown flag {name}; {guess}")
        self._check_values(arguments)
        flags, unexpected = self.parse_known_args(arguments)
        if unexpected:
            raise InputError(f"unexpected argument {unexpected[0]!r}; flags begin with --")
        return flags

    def _check_values(self, arguments: Sequence[str]) -> None:
        """Report empty values first, whatever type the flag has: a shell variable is unset."""
        flag = ""
        for argument in arguments:
            name, equals, value = argument.partition("=")
            if equals and name in self._option_string_actions:
                check_argument(name, value)
            elif flag and argument not in self._option_string_actions:
                check_argument(flag, argument)
            action = self._option_string_actions.get(argument)
            flag = argument if action is not None and action.nargs != 0 else ""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        message = message.removeprefix("argument ").replace("one argument", "a value")
        raise InputError(f"{message}; see {self.prog} --help")

    def add_path_completion(self, files: Mapping[str, Any]) -> None:
        """Mark the flags that take paths, as shtab reads it."""
        for action in self._actions:
            if action.metavar in _PATHS:
                action.complete = files  # type: ignore[attr-defined]

    def set_usage(self) -> None:
        """Show only what is required: flags, and arguments without one."""
        required = [one for one in self._actions if one.required]
        words = [" ".join([*one.option_strings[:1], str(one.metavar)]) for one in required]
        self.usage = " ".join(["%(prog)s", *words, "[flags]"])


def hint(name: str, known: Iterable[str], prog: str) -> str:
    """What a misspelled verb or flag was probably meant to be."""
    names = {one.lstrip("-"): one for one in known}
    near = difflib.get_close_matches(name.lstrip("-"), names, n=1)
    return f"did you mean {names[near[0]]}?" if near else f"see {prog} --help"


def _looks_like_flag(argument: str) -> bool:
    """Whether an argument is a flag, known or not; `-`, numbers and text with blanks are values."""
    if not argument.startswith("-") or argument == "-" or " " in argument:
        return False
    try:
        float(argument)
    except ValueError:
        return True
    return False


def names(text: str) -> list[str]:
    """Names, separated by commas."""
    return [name.strip() for name in text.split(",")]


def epochs(text: str) -> tuple[int, int]:
    """`N` or `N,M`: the epochs of stage 1 and stage 2."""
    parts = [positive(part) for part in text.split(",")]
    if len(parts) > 2:
        raise argparse.ArgumentTypeError(f"expected N or N,M, got {text!r}")
    return parts[0], parts[-1]


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, 0)


def class_fractions(text: str) -> dict[str, float]:
    """`CLASS=F[,CLASS=F]`: a number above 0 and below 1 for each class that is named."""
    found: dict[str, float] = {}
    for part in names(text):
        name, equals, value = part.rpartition("=")
        if not equals or not name or name in found:
            raise argparse.ArgumentTypeError(
                f"expected CLASS=F[,CLASS=F], each class once, got {text!r}"
            )
        found[name] = inner_fraction(value)
    return found


def _whole(text: str, minimum: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < minimum:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of at least {minimum}, got {text!r}"
        )
    return int(text)


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def inner_fraction(text: str) -> float:
    """A number above 0 and below 1."""
    value = fraction(text)
    if value in (0, 1):
        raise argparse.ArgumentTypeError(f"expected a number above 0 and below 1, got {text!r}")
    return value
