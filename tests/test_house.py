"""The house keeps its own rules: imports run one way, and the README's tree is the real one."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lesioncam"

# Ground floor first. A module may import from its own floor and from those below it, except that
# scoring and training do not know each other, nor evaluation either of them.
FLOORS = (
    ("errors", "schema", "settings"),
    ("vision",),
    ("storage",),
    ("cluster", "telemetry", "scoring", "training", "evaluation"),
    ("demo", "logs", "cli", "predict", "__main__"),
)
APART = ({"scoring", "training", "evaluation"},)
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else "__init__"


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {room(name) for name in names if name.startswith("lesioncam.")}


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        assert not imported(path)
        return
    for other in imported(path):
        assert floor(other) <= floor(own), f"{own} imports {other}, which is above it"
        for rooms in APART:
            assert other == own or not {own, other} <= rooms, f"{own} imports {other}"


def test_vision_touches_neither_ray_nor_files() -> None:
    for path in (PACKAGE / "vision").glob("*.py"):
        text = path.read_text()
        assert not re.search(r"^(import|from) (ray|boto3|pyarrow)", text, re.M), path.name


def test_the_readme_tree_is_the_real_one() -> None:
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"```text\n(lesioncam/\n.*?)```", readme, re.S)
    assert block, "the README has no file tree"
    told: set[str] = set()
    folder = ""
    for line in block.group(1).splitlines()[1:]:
        name = line.split("  #")[0].rstrip()
        depth, name = len(name) - len(name.lstrip()), name.strip()
        if name.endswith("/"):
            folder = name if depth == 2 else folder
            told.add(name)
        elif name:
            told.add((folder if depth > 2 else "") + name)
    listed = subprocess.run(
        ["git", "ls-files", "lesioncam"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    real = {name.removeprefix("lesioncam/") for name in listed if name.endswith(".py")}
    real = {name for name in real if not name.endswith("__init__.py")} | {
        f"{name.split('/')[0]}/" for name in real if "/" in name
    }
    assert told == real


def test_readme_commands_name_real_flags() -> None:
    from lesioncam.cli import _parser

    readme = (ROOT / "README.md").read_text()
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", readme, re.S))
    commands = re.findall(r"^lesioncam (\w+)((?:[^\n]*\\\n)*[^\n]*)", blocks, re.M)
    assert {verb for verb, _ in commands} >= {"train", "score", "evaluate"}
    for verb, rest in commands:
        flags = _parser().parse_args([verb, *rest.replace("\\\n", " ").split()])
        assert flags.verb.__name__ == f"_{verb}"
