"""The code layout: imports run one way, from the verbs down to the column names."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lesioncam.cli import parse
from lesioncam.verbs import VERBS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lesioncam"

# Lowest layer first. A module imports from its own layer and those below it.
LAYERS = (
    {"arguments", "columns", "errors", "schema", "settings"},
    {"vision"},
    {"storage"},
    {"address", "cluster", "interrupts", "logs", "telemetry"},
    {"scoring", "training", "evaluation"},
    {"calibration", "datasets", "downloads", "predict", "quantization"},
    {"api"},
    {"demo"},
    {"flags", "verbs", "cli", "__main__"},
)
INDEPENDENT = {"scoring", "training", "evaluation"}  # these do not import each other
MODULES = sorted(PACKAGE.rglob("*.py"))


def part(module: str) -> str:
    """`scoring` for `lesioncam.scoring.plan`; `__init__` for the package itself."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> set[str]:
    """The parts of lesioncam that a module imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {part(name) for name in names if name.split(".")[0] == "lesioncam"} - {"__init__"}


def layer(name: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if name in names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return  # it imports on demand
    for other in imports(path):
        assert layer(other) <= layer(own), f"{own} imports {other}, which is above it"
        if own in INDEPENDENT and other != own:
            assert other not in INDEPENDENT, f"{own} imports {other}"


def test_vision_imports_neither_ray_nor_storage_libraries() -> None:
    for path in (PACKAGE / "vision").glob("*.py"):
        text = path.read_text()
        assert not re.search(r"^(import|from) (ray|boto3|pyarrow)", text, re.M), path.name


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("lesioncam", {"torch", "ray", "pandas", "numpy", "pyarrow", "pydantic"}),
        ("lesioncam.api", {"torch", "ray", "pandas", "numpy", "pyarrow", "pydantic"}),
        ("lesioncam.columns", {"torch", "ray", "pandas", "numpy", "pyarrow", "pydantic"}),
        ("lesioncam.evaluation.evaluate", {"torch", "ray"}),
        ("lesioncam.evaluation.report", {"torch", "ray"}),
        ("lesioncam.downloads", {"torch", "ray", "pandas"}),
        ("lesioncam.evaluation.drift", {"torch", "ray", "scipy"}),
        ("lesioncam.cluster", {"torch"}),
        ("lesioncam.scoring.pipeline", {"torch", "ray"}),
        ("lesioncam.scoring.stream", {"torch"}),
        ("lesioncam.scoring.stages", {"ray", "torchvision"}),
        ("lesioncam.vision.engine", {"torchvision"}),
    ],
)
def test_modules_stay_light(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_has_the_public_names() -> None:
    import lesioncam

    assert set(lesioncam.__all__) <= set(dir(lesioncam))
    for name in lesioncam.__all__:
        assert getattr(lesioncam, name)
    # Importing a module of that name would replace the function.
    assert set(lesioncam.__all__).isdisjoint(path.stem for path in PACKAGE.iterdir())
    with pytest.raises(AttributeError, match="module 'lesioncam' has no attribute 'scroe'"):
        lesioncam.scroe  # noqa: B018


def test_readme_commands_parse() -> None:
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S))
    commands = re.findall(r"^lesioncam (\w+)((?:[^\n]*\\\n)*[^\n]*)", blocks, re.M)
    assert {verb for verb, _ in commands} >= {"train", "score", "evaluate"} & VERBS.keys()
    for verb, flags in commands:
        parse([verb, *flags.replace("\\\n", " ").split()])
