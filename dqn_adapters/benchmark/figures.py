"""The pictures of the report, as SVG text.

Each picture is small and holds one panel: a page can lay them side by side on a wide screen and
one below the other on a phone, and the text stays readable.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from dqn_adapters.benchmark.statistics import Band, Estimate

# The palette of Okabe and Ito (2008), which colour-blind readers can tell apart.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#767676"
VARIANT_COLOURS = {"vanilla": VERMILLION, "target": BLUE, "double": GREEN}
VARIANT_MARKERS = {"vanilla": "v", "target": "o", "double": "D"}
SPARE = ((PURPLE, "s"), (ORANGE, "^"), (SKY, "P"), (BLACK, "X"))
"""Colours and markers of further systems in a panel."""
LIBRARY_COLOURS = {"native": BLACK, "sb3": ORANGE, "tianshou": PURPLE}
LIBRARY_MARKERS = {"native": "o", "sb3": "s", "tianshou": "^"}

DIVERGED = 1_000.0
"""Overestimation beyond which an axis is logarithmic: a linear one would show nothing else."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # real text: small, sharp, searchable
    "svg.hashsalt": "dqn-bench",  # the same numbers give the same file
    "font.family": "sans-serif",
    # Measured with the first one, which is wider than what browsers put in its place.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#333333",
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Line:
    """A curve of a panel."""

    label: str
    band: Band
    colour: str
    marker: str
    dashed: bool = False


@dataclass(frozen=True)
class Mark:
    """A row of an interval plot."""

    label: str
    estimate: Estimate
    colour: str
    marker: str
    hollow: bool = False


def learning_curves(
    title: str,
    lines: Sequence[Line],
    *,
    limits: tuple[float, float],
    threshold: float | None = None,
) -> str:
    """One panel: mean curves over seeds with their bands.

    Args:
        title: Above the panel.
        lines: What to draw.
        limits: Of the vertical axis, the same in panels that are compared.
        threshold: A dotted horizontal line.
    """
    return _curves(
        title,
        lines,
        limits=limits,
        threshold=threshold,
        labels=("environment steps", "greedy return"),
    )


def profiles(title: str, lines: Sequence[Line]) -> str:
    """One panel: performance profiles with their bands.

    Args:
        title: Above the panel.
        lines: Share of runs, `band.mean`, above a normalised score, `band.x`.
    """
    return _curves(
        title, lines, limits=(-0.02, 1.02), labels=("normalised score", "share of runs above it")
    )


def efficiency_curves(
    title: str, lines: Sequence[Line], *, limits: tuple[float, float], shares: bool
) -> str:
    """One panel: normalised scores over all environments along the training.

    Args:
        title: Above the panel.
        lines: What to draw.
        limits: Of the vertical axis, the same in panels that are compared.
        shares: Whether the horizontal axis is the share of the training, not environment steps.
    """
    return _curves(
        title,
        lines,
        limits=limits,
        labels=("share of the training" if shares else "environment steps", "normalised score"),
        percent=shares,
    )


def bias_curves(title: str, lines: Sequence[Line], *, limits: tuple[float, float]) -> str:
    """One panel: mean overestimation against environment steps; where estimates diverge, the axis
    is linear up to 1 and logarithmic beyond."""
    return _curves(
        title,
        lines,
        limits=limits,
        threshold=0.0,
        labels=("environment steps", "estimate \N{MINUS SIGN} return"),
        symlog=max(map(abs, limits)) > DIVERGED,
    )


@dataclass(frozen=True)
class ExampleLine:
    """A variant on Example 6.7; arrays `(episodes,)`."""

    label: str
    share: NDArray[np.float64]
    """Of runs that go left."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    """Where its tabular oracle says that it should be."""

    colour: str
    marker: str


def example(lines: Sequence[ExampleLine], *, optimal: float) -> str:
    """Example 6.7: how often runs go left, against episodes, on the bands of their oracles.

    Args:
        lines: What to draw.
        optimal: A dotted horizontal line.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(5.2, 3.1)
        axes.set_title("Example 6.7: going left")
        axes.axhline(optimal, color=GREY, linewidth=1.0, linestyle=(0, (1, 2)))
        for line in lines:
            episodes = np.arange(1, len(line.share) + 1)
            axes.fill_between(
                episodes, line.low, line.high, color=line.colour, alpha=0.22, linewidth=0
            )
            axes.plot(
                episodes,
                line.share,
                color=line.colour,
                linewidth=1.2,
                marker=line.marker,
                markersize=4.0,
                markevery=len(episodes) // 12 or 1,
                label=line.label,
            )
        axes.annotate(
            "optimal",
            (len(episodes), optimal),
            (0, -3),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8.0,
            color="#555555",
        )
        axes.set_xlim(0, len(episodes))
        axes.set_ylim(-0.04, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("episodes")
        axes.set_ylabel("runs that go left from A")
        axes.legend(loc="upper right")
        return _svg(figure)


def _plain(text: str) -> str:
    """A user's word for matplotlib, for which dollars begin and end formulas."""
    return text.replace("$", r"\$")


def _curves(
    title: str,
    lines: Sequence[Line],
    *,
    limits: tuple[float, float],
    labels: tuple[str, str],
    threshold: float | None = None,
    symlog: bool = False,
    percent: bool = False,
) -> str:
    with matplotlib.rc_context(_STYLE):
        # The axes of panels side by side are equally high, however long the legends are.
        legend_rows = -(-len(lines) // 2)
        figure, axes = _figure(4.0, 2.6 + 0.17 * legend_rows)
        axes.set_title(_plain(title))
        if threshold is not None:
            axes.axhline(threshold, color=GREY, linewidth=1.0, linestyle=(0, (1, 2)))
        for line in lines:
            band = line.band
            if len(band.samples) > 1:
                axes.fill_between(
                    band.x, band.low, band.high, color=line.colour, alpha=0.13, linewidth=0
                )
            axes.plot(
                band.x,
                band.mean,
                color=line.colour,
                linestyle=(0, (4, 2)) if line.dashed else "solid",
                marker=line.marker,
                markersize=4.0,
                markevery=max(1, len(band.x) // 12),
                markerfacecolor="white" if line.dashed else line.colour,
                label=_plain(line.label),
            )
        if symlog:
            axes.set_yscale("symlog", linthresh=1.0)
        axes.set_ylim(*limits)
        axes.set_xlim(left=min(line.band.x[0] for line in lines))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(
            PercentFormatter(1.0, decimals=0) if percent else FuncFormatter(_thousands)
        )
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        figure.legend(loc="outside lower left", ncols=2, handlelength=2.6, columnspacing=1.6)
        return _svg(figure)


def intervals(
    title: str,
    groups: Mapping[str, Sequence[Mark]],
    *,
    label: str,
    from_zero: bool = False,
) -> str:
    """A row per system: the seeds as dots, the mean as a marker, its interval as a line.

    Args:
        title: Above the plot.
        groups: Rows under headings.
        label: Of the horizontal axis.
        from_zero: Draw a bar from 0 to the mean: for quantities of which ratios are compared, and
            for differences.
    """
    with matplotlib.rc_context({**_STYLE, "axes.grid.axis": "x"}):
        rows = sum(len(marks) + 1 for marks in groups.values())
        figure, axes = _figure(4.4, 0.85 + 0.21 * rows)
        axes.set_title(_plain(title))
        height, ticks, labels = 0.0, [], []
        for heading, marks in groups.items():
            ticks.append(height)
            labels.append(_plain(heading))
            height += 1
            for mark in marks:
                _interval(axes, height, mark, bar=from_zero)
                ticks.append(height)
                labels.append(_plain(mark.label))
                height += 1
        axes.set_ylim(height - 0.4, -0.6)
        axes.set_yticks(ticks, labels)
        for text in axes.get_yticklabels():
            if text.get_text() in map(_plain, groups):
                text.set_fontweight("bold")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        if from_zero:
            estimates = [mark.estimate for marks in groups.values() for mark in marks]
            ends = [end for each in estimates for end in (each.low, each.high, *each.samples)]
            if min(ends) >= 0:
                axes.set_xlim(left=0)
            elif max(ends) <= 0:
                axes.set_xlim(right=0)
            axes.axvline(0, color=GREY, linewidth=1.0, zorder=1)
        axes.set_xlabel(label)
        return _svg(figure)


def _interval(axes: Axes, height: float, mark: Mark, *, bar: bool) -> None:
    estimate = mark.estimate
    face = "white" if mark.hollow else mark.colour
    if bar:
        axes.barh(
            height,
            estimate.mean,
            height=0.62,
            color=mark.colour,
            alpha=0.18,
            linewidth=0,
        )
    axes.plot(
        [estimate.low, estimate.high],
        [height, height],
        color=mark.colour,
        linewidth=1.6,
        linestyle="solid" if estimate.kind == "interval" else (0, (1, 1)),
    )
    axes.plot(
        estimate.samples,
        [height] * estimate.n,
        linestyle="none",
        marker="|",
        markersize=7,
        markeredgewidth=1.2,
        color=mark.colour,
        alpha=0.55,
    )
    axes.plot(
        estimate.mean,
        height,
        marker=mark.marker,
        markersize=6,
        markerfacecolor=face,
        markeredgecolor=mark.colour,
        markeredgewidth=1.4,
    )


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def _thousands(value: float, _: object) -> str:
    if abs(value) >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:g}"
