"""Arguments: what no argument of a verb may be, given as a flag or as a keyword."""

import os
import re

from lesioncam.errors import InputError

_ONE_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")


def check_argument(name: str, value: object) -> None:
    """Refuse an empty text, and a URI that has lost a slash.

    Args:
        name: of the flag or keyword, for the message.
        value: texts and paths are checked, anything else is not.

    Raises:
        InputError: it is one of these.
    """
    if not isinstance(value, str | os.PathLike):
        return
    text = os.fspath(value)
    if isinstance(text, bytes):
        raise InputError(f"{name}: expected a path of text, got bytes")
    if not text.strip():
        raise InputError(
            f"{name}: the value is empty; give one, or leave it out (is a variable unset?)"
        )
    if found := _ONE_SLASH.match(text):
        scheme = found[1]
        raise InputError(
            f"{name}: {text} has one slash after {scheme}: where a URI has two; pass a URI as a "
            f"string, as pathlib drops a slash"
        )
