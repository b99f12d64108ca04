"""The look of all figures: a style for each method, fixed fonts, and files with equal bytes.

Each method has its own colour (Okabe-Ito), marker and dash. The same figure gives the same bytes:
Agg backend, matplotlib's own settings and fonts, fixed SVG ids, no date or version in the files.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from semires.config.resolve import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

#: method -> colour (Okabe-Ito), marker, dash, name
STYLES: dict[str, tuple[str, str, str, str]] = {
    "supervised": (COLOURS["supervised"], "s", ":", "Supervised"),
    "control": (COLOURS["control"], "D", ":", "Supervised, longer"),
    "baseline": (COLOURS["baseline"], "^", "--", "Baseline"),
    "iom": (COLOURS["iom"], "v", "-.", "IOM"),
    "cpi": (COLOURS["cpi"], "P", "-", "CPI"),
    "cpi-u": (COLOURS["cpi-u"], "o", "-", "CPI-U"),
    "cpi-o": (COLOURS["cpi-o"], "X", "-.", "CPI-O"),
}
#: Names of further methods and rules, as in experiments/tables/beyond.yaml.
NAMES = {
    "fixmatch": "FixMatch",
    "softmatch": "SoftMatch",
    "corrmatch": "CorrMatch",
    "unimatch": "UniMatch",
    "cpi-u-softmatch": "CPI-U, weights of SoftMatch",
    "cpi-u-views": "CPI-U, two strong views",
    "cpi-u-labelled": "CPI-U, labelled images",
    "cpi-u-pwa": "CPI-U, PWA",
    "f-beta": "F-beta",
    "sepl": "SEPL",
    "majority": "Majority vote",
    "mean-score": "Mean score",
    "soft-cpi": "Soft CPI",
    "soft-cpi-u": "Soft CPI-U",
    "expected-iou-atoms": "Expected IoU, atoms",
    "expected-iou": "Expected IoU, proposals",
    "expected-iou-one": "Expected IoU, one proposal",
    "expected-iou-one-weighted": "Expected IoU, one proposal, weighted",
    "expected-iou-gated": "Expected IoU, gated",
    "expected-iou-weighted": "Expected IoU, weighted",
}
# Of other methods: 7 colours and 8 markers that the paper's methods do not have, so 56 pairs.
_COLOURS = ("#0072B2", "#CC79A7", "#009E73", "#D55E00", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "<>hp*d8H"
_DASHES = ("--", "-.", ":")


def style_of(method: str) -> tuple[str, str, str, str]:
    """Colour, marker, dash and name of a method, fixed for those of STYLES.

    ``METHOD+SOURCE`` is the method with another source of proposals.
    """
    if method in STYLES:
        return STYLES[method]
    number = sum(map(ord, method))
    base, _, source = method.partition("+")
    name = f"{style_of(base)[3]}, {source}" if source else NAMES.get(method, method)
    return *_other(number), _DASHES[number % len(_DASHES)], name


def name_of(method: str) -> str:
    """The name of a method, see :func:`style_of`."""
    return style_of(method)[3]


def plot_method(axis: Axes, method: str, x: Any, y: Any, **options: Any) -> Line2D:
    """A line in the style of a method."""
    colour, marker, dash, _ = style_of(method)
    (line,) = axis.plot(x, y, color=colour, marker=marker, ls=dash, **options)
    return line


def distinct_styles(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method of one figure; up to 56 methods without STYLES differ."""
    others = (_other(number) for number in itertools.count())
    return {m: STYLES[m][:2] if m in STYLES else next(others) for m in methods}


def _other(number: int) -> tuple[str, str]:
    return _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]


def fix_style() -> None:
    """Make figures independent of the user's matplotlibrc and of the fonts of the machine."""
    import matplotlib as mpl
    from matplotlib.font_manager import fontManager

    mpl.rcdefaults()
    mpl.use("Agg")
    mpl.rcParams.update(
        {
            "svg.hashsalt": "semires", "font.family": "DejaVu Sans", "font.size": 9,
            "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8,
            "xtick.labelsize": 8, "ytick.labelsize": 8, "axes.spines.top": False,
            "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd",
            "grid.linewidth": 0.6, "axes.axisbelow": True, "text.parse_math": False,
            "figure.facecolor": "white",
        }
    )  # fmt: skip
    bundled = mpl.get_data_path()
    fontManager.ttflist = [f for f in fontManager.ttflist if f.fname.startswith(bundled)]


def save(figure: Figure) -> tuple[bytes, bytes]:
    """A figure as PNG and SVG bytes, without a date or a version in them."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return png.getvalue(), svg.getvalue()


def new_axes(count: int, height: float, width: float = 2.3) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels in rows of three; height and width of a panel in inches."""
    fix_style()
    from matplotlib.figure import Figure

    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.35), layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    return figure, axes
