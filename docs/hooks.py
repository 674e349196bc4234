"""MkDocs hook: fills the reference pages from the code, so that they cannot go stale.

A page asks for generated text with an HTML comment on a line of its own:

    <!-- help: score -->             what `lesioncam score --help` prints
    <!-- settings: TrainSettings --> the fields of a settings class
    <!-- columns -->                 adds each column's type to the table that follows
    <!-- error kinds -->             checks the table that follows
    <!-- notebook: examples/x.ipynb --> the cells of a notebook; also replaces the next line, which
                                     links to it for readers on GitHub
    <!-- include: CHANGELOG.md -->   another Markdown file of the repository; also replaces the
                                     next line, which links to it for readers on GitHub

The build fails where a table and the code differ, where a command has a flag that does not exist,
and where an included file links to nothing.
"""

import contextlib
import io
import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from pydantic import TypeAdapter

from lesioncam import settings
from lesioncam.cli import main, parse
from lesioncam.columns import ErrorKind
from lesioncam.errors import InputError
from lesioncam.schema import scores_schema

ROOT = Path(__file__).parents[1]
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "cluster/README.md": "cluster.md",
    "cluster/monitoring/README.md": "monitoring.md",
}

_MARKER = re.compile(r"^<!-- (help|settings|notebook|include): (.+) -->$(?:\n\[.+$)?", re.MULTILINE)
_TABLE = re.compile(r"^<!-- (columns|error kinds) -->\n\n((?:\|.*\n)+)", re.MULTILINE)
_SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
_COMMAND = re.compile(
    r"^(?:lesioncam|python jobs/(?=train|score)) *(\w+)(?:\.py)?(.*)$", re.MULTILINE
)
_LINK = re.compile(r"\[([^\]]+)\]\(([^)#:]+)(#[^)]*)?\)")


def on_pre_build(**_: Any) -> None:
    """Check the README, which is no page of the site; called by MkDocs."""
    check_commands(included("README.md"))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the comments of one page; called by MkDocs."""
    markdown = _TABLE.sub(lambda found: _checked_table(found[1], found[2]), markdown)
    generators = {
        "help": verb_help,
        "settings": settings_table,
        "notebook": notebook,
        "include": included,
    }
    markdown = _MARKER.sub(lambda found: generators[found[1]](found[2]), markdown)
    check_commands(markdown)
    return markdown


def check_commands(markdown: str) -> None:
    """Parse the flags of every `lesioncam` command in a page's shell blocks."""
    for block in _SHELL.findall(markdown):
        for verb, flags in _COMMAND.findall(block.replace("\\\n", " ")):
            try:
                parse([verb, *shlex.split(flags, comments=True)])
            except InputError as error:
                raise PluginError(f"lesioncam {verb} {flags.strip()}: {error}") from error


def verb_help(verb: str) -> str:
    """What `lesioncam VERB --help` prints, as a code block; of all verbs for `lesioncam`."""
    os.environ["COLUMNS"] = "100"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main(["--help"] if verb == "lesioncam" else [verb, "--help"])
    return f"```text\n{printed.getvalue().rstrip()}\n```"


def settings_table(name: str) -> str:
    """The fields of a class of `lesioncam.settings`: default, allowed values and meaning."""
    kind = getattr(settings, name)
    sections = griffe.Docstring(kind.__doc__).parse("google")
    described = {
        attribute.name: " ".join(attribute.description.split())
        for section in sections
        if section.kind is griffe.DocstringSectionKind.attributes
        for attribute in section.value
    }
    _check(name, list(described), [field.name for field in fields(kind)])
    schema = TypeAdapter(kind).json_schema()
    lines = ["| setting | default | values | meaning |", "|---|---|---|---|"]
    for field, meaning in described.items():
        known = schema["properties"][field]
        default = f"`{_toml(known['default'])}`" if known.get("default") is not None else ""
        values = ", ".join(settings.BACKBONES) if field == "backbone" else _values(known)
        lines.append(f"| `{field}` | {default} | {values} | {meaning} |")
    return "\n".join(lines)


def notebook(path: str) -> str:
    """The cells of a notebook, as a page of `docs/guide`: text, and code without its output."""
    cells = json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]
    texts = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    blocks = [text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in texts]
    return "\n\n".join(blocks).replace("](../docs/", "](../")


def included(path: str) -> str:
    """Another file of the repository; links to pages of the site stay links, others become text."""
    source = ROOT / path

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        real = (source.parent / target).resolve()
        if not real.exists():
            raise PluginError(f"{path} links to {target}, which does not exist")
        name = str(real.relative_to(ROOT))
        page = PAGES.get(name, name.removeprefix("docs/") if name.startswith("docs/") else None)
        return f"[{text}]({page}{anchor})" if page else text

    return _LINK.sub(link, source.read_text())


def _checked_table(what: str, table: str) -> str:
    header, rule, *rows = table.splitlines()
    named = [row.split("`")[1] for row in rows]
    if what == "error kinds":
        _check(what, named, list(ErrorKind))
        return table
    schema = scores_schema(("<class>",))
    _check(what, named, schema.names)
    names = {"float": "float32", "list<element: string>": "list of string"}
    types = ["type", *(names.get(str(field.type), str(field.type)) for field in schema)]
    lines = [
        row.replace(" | ", f" | {kind} | ", 1)
        for row, kind in zip([header, *rows], types, strict=True)
    ]
    return "\n".join([lines[0], f"|---{rule}", *lines[1:]]) + "\n"


def _check(what: str, documented: Sequence[str], real: Sequence[str]) -> None:
    if list(documented) != list(real):
        differing = sorted(set(documented) ^ set(real)) or "their order"
        raise PluginError(f"{what}: the documents and the code differ in {differing}")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _values(known: dict[str, Any]) -> str:
    """The values that a setting takes, from its JSON schema."""
    options = [option for option in known.get("anyOf", [known]) if option.get("type") != "null"]
    (option,) = options
    if "enum" in option:
        return ", ".join(f'`"{value}"`' for value in option["enum"])
    limits = [
        f"{sign} {option[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
            ("multipleOf", "multiple of"),
        )
        if key in option
    ]
    return ", ".join([option.get("type", "table"), *limits])
