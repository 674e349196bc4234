"""lesioncam: classifies skin-lesion images in bulk with a two-stage, CAM-guided network.

`load(bundle)` gives a classifier that runs in this process; `score`, `train`, `evaluate`,
`report`, `calibrate`, `quantize` and `download` are the verbs of the command line. Importing the
package does nothing: what these need, such as torch and Ray, is imported when one of them is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lesioncam.api import calibrate, download, evaluate, quantize, report, score, train
    from lesioncam.predict import load

    __version__: str

__all__ = [
    "__version__",
    "calibrate",
    "download",
    "evaluate",
    "load",
    "quantize",
    "report",
    "score",
    "train",
]

_MODULES = {
    "calibrate": "lesioncam.api",
    "download": "lesioncam.api",
    "evaluate": "lesioncam.api",
    "load": "lesioncam.predict",
    "quantize": "lesioncam.api",
    "report": "lesioncam.api",
    "score": "lesioncam.api",
    "train": "lesioncam.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name == "__version__":
        value: Any = _version()
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'lesioncam' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return version("lesioncam")
    except PackageNotFoundError:  # run from a working directory shipped by `ray job submit`
        return "0.1.0+source"
