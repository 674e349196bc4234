"""Page: the content of a report as one HTML file that loads nothing.

Every text is escaped by the template. The page's own policy forbids the browser to load anything,
and to run any script but the page's own.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lesioncam.columns import STAGES
from lesioncam.evaluation import plots
from lesioncam.evaluation.pictures import Picture
from lesioncam.vision.metrics import format_figure, with_interval

_FILES = Path(__file__).parent / "page_files"
_STAGE_NAMES = {"stage1": "stage 1", "stage2": "stage 2", "final": "final"}
_MAX_TEXT = 2000  # characters of a text from the scores, such as a uri


def render(content: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """Make the page.

    Args:
        content: of `report.json`.
        pictures: of the images of its gallery.
    """
    environment = Environment(
        loader=FileSystemLoader(_FILES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": lambda value: f"{value:,}",
        "percent": _percent,
        "figure": format_figure,
        "interval": with_interval,
        "data_uri": _data_uri,
        "words": lambda value: value.replace("_", " "),
        "cut": lambda value: value if len(value) <= _MAX_TEXT else f"{value[:_MAX_TEXT]}...",
    }
    script = (_FILES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        report=content,
        cards=list(zip(content["gallery"]["images"], pictures, strict=True)),
        places={image["uri"]: n for n, image in enumerate(content["gallery"]["images"], 1)},
        classes=list(content["classes"]),
        stages={stage: _STAGE_NAMES[stage] for stage in STAGES},
        plots=_plots(content),
        style=Markup((_FILES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_digest=digest,
    )


def _plots(content: Mapping[str, Any]) -> dict[str, dict[str, Markup]]:
    """SVGs by kind and class; what is undefined is missing."""
    index = {name: k for k, name in enumerate(content["classes"])}
    drawn = {
        "distribution": {
            name: Markup(plots.distribution(figures, name, index[name]))
            for name, figures in content["classes"].items()
        }
    }
    labeled = content["labeled"]
    if labeled is not None:
        drawn["roc"] = {
            name: Markup(plots.roc(curve, index[name], labeled["flags"].get(name)))
            for name, curve in labeled["roc"].items()
            if curve is not None
        }
        drawn["calibration"] = {
            name: Markup(plots.calibration(figures["bins"], name, index[name]))
            for name, figures in labeled["calibration"].items()
        }
    return drawn


def _percent(part: int, whole: int) -> str:
    """`3.1 %`; never `0.0 %` of something, nor `100.0 %` of less than all."""
    if not whole:
        return "0 %"
    value = 100 * part / whole
    if part and value < 0.1:
        return "< 0.1 %"
    if part < whole and value > 99.9:
        return "> 99.9 %"
    return f"{value:.1f} %"


def _data_uri(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
