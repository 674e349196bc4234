"""Plots: figures of the report as SVG to stand inside a page, in light and dark."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from lesioncam.columns import STAGES

# Text and axes are drawn in this color, and take that of the page.
_INK = "#010203"
# Of at least 3:1 contrast with the page's light and its dark background.
_FINAL, _STAGE1, _STAGE2 = "#2f7fd1", "#c8553d", "#2e8b57"
_MAX_LINEAR = 100  # images in the highest bin of a histogram with a linear scale
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "lesioncam",  # the same figure gives the same file
    "font.size": 11,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}
_ID = re.compile(r'(\bid="|href="#|url\(#)')
_FONT = re.compile(r"'DejaVu Sans'[^;\"]*sans-serif")


def distribution(figures: Mapping[str, Any], name: str, class_index: int) -> str:
    """How many images have which probability of a class, by stage.

    Args:
        figures: the class's entry in `classes` of the report.
        name: of the class.
        class_index: its index, for ids.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _axes((4.4, 2.9))
        counts = figures["final"]["histogram"]
        edges = np.linspace(0, 1, len(counts) + 1)
        axes.stairs(counts, edges, fill=True, color=_FINAL, alpha=0.45, label="final")
        for stage, color, line in (("stage1", _STAGE1, "-"), ("stage2", _STAGE2, "--")):
            axes.stairs(
                figures[stage]["histogram"],
                edges,
                color=color,
                linestyle=line,
                label=f"stage {stage[-1]}",
            )
        axes.set(xlabel=f"probability of {name}", xlim=(0, 1))
        if max(max(figures[stage]["histogram"]) for stage in STAGES) > _MAX_LINEAR:
            axes.set_yscale("log", nonpositive="clip")
            axes.set_ylim(bottom=0.7)
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.set_ylabel("images (log scale)")
        else:
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylabel("images")
        axes.legend(loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.2))
        return _svg(figure, f"distribution-{class_index}")


def roc(
    curve: Mapping[str, Any], class_index: int, operating_point: Mapping[str, Any] | None
) -> str:
    """An ROC curve with its interval band.

    Args:
        curve: as `lesioncam.evaluation.curves.roc_band` gives it.
        class_index: the index of its class, for ids.
        operating_point: as `at_flag` gives it, to mark on the curve; None for none.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _axes((3.6, 3.4))
        rates = curve["false_positive_rate"]
        axes.fill_between(rates, curve["low"], curve["high"], color=_FINAL, alpha=0.25, lw=0)
        axes.plot(rates, curve["sensitivity"], color=_FINAL)
        axes.plot([0, 1], [0, 1], color=_INK, lw=0.6, ls=":")
        if operating_point is not None:
            x = 1 - operating_point["specificity"]["fraction"]
            y = operating_point["sensitivity"]["fraction"]
            axes.plot([x], [y], "o", color=_STAGE1, label="flag")
            axes.legend(loc="lower right")
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.01))
        return _svg(figure, f"roc-{class_index}")


def calibration(bins: Sequence[Mapping[str, Any]], name: str, class_index: int) -> str:
    """How often images of a probability are of the class.

    Args:
        bins: as `lesioncam.evaluation.curves.calibration` gives them.
        name: of the class.
        class_index: its index, for ids.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _axes((3.6, 3.4))
        mean, found, low, high = (
            np.array([one[key] for one in bins]) for key in ("mean", "fraction", "low", "high")
        )
        axes.plot([0, 1], [0, 1], color=_INK, lw=0.6, ls=":")
        bars = np.maximum([found - low, high - found], 0)
        axes.errorbar(mean, found, yerr=bars, fmt="o-", ms=4, lw=1, color=_FINAL)
        axes.set(xlabel=f"probability of {name}", ylabel="fraction of that class")
        axes.set(xlim=(0, 1), ylim=(0, 1.01))
        return _svg(figure, f"calibration-{class_index}")


def _axes(inches: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=inches, layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.grid(alpha=0.2, color=_INK, lw=0.5)
    return figure, axes


def _svg(figure: Figure, prefix: str) -> str:
    """The figure as an `<svg>` element whose ids begin with `prefix`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = _ID.sub(lambda found: f"{found[0]}{prefix}-", text[text.index("<svg") :])
    return _FONT.sub("system-ui, sans-serif", text).replace(_INK, "currentColor")
