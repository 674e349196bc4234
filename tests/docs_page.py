"""Tables that a command writes into a page of the documentation, between two markers."""

import subprocess
import textwrap
from datetime import UTC, datetime
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def read_section(page: Path, name: str) -> str:
    """What stands between `<!-- name -->` and `<!-- /name -->`."""
    return _split(page, name)[1].strip()


def write_section(page: Path, name: str, content: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`."""
    before, _, after = _split(page, name)
    page.write_text(f"{before}\n{content.strip()}\n\n{after}", encoding="utf-8")


def _split(page: Path, name: str) -> tuple[str, str, str]:
    text, begin, end = page.read_text(encoding="utf-8"), f"<!-- {name} -->\n", f"<!-- /{name} -->"
    start, stop = text.index(begin) + len(begin), text.index(end)
    return text[:start], text[start:stop], text[stop:]


def commit() -> str:
    """The commit that is checked out, in short."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def today() -> str:
    """The date, as the documentation writes it."""
    return f"{datetime.now(UTC):%-d %B %Y}"


def paragraph(text: str) -> str:
    """The text in lines as long as the documentation's."""
    return textwrap.fill(text, 120)
