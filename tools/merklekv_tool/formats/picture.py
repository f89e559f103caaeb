"""Pictures of Merkle trees: a panel for each tree, a dot for each leaf, a square of dots for each inner node.

matplotlib draws them. It is an extra dependency, imported only for a picture. Equal panels give equal bytes.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from merklekv.engine.format import BUCKETS
from merklekv.engine.merkle import LEAVES_PER_INNER
from merklekv.errors import InvalidArgument

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = tuple[str, list[int], str]  # title, a number for each leaf, what the numbers count

SIDE: Final = 256  # dots of a panel: 16 squares of 16
SQUARE: Final = 16
INCHES: Final = 5.0
DOTS_PER_INCH: Final = 130
DIFFERENT: Final = "different"  # the numbers are marks
TINT: Final = 0.2  # of the square around a mark, which alone is easily missed
FEW: Final = 12  # up to this number the scale shows each integer


def picture(panels: list[Panel], form: str) -> bytes:
    """The panels side by side, as `png` or `svg`. Raises InvalidArgument without matplotlib."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidArgument(
            "--output needs matplotlib, which is not installed: pip install matplotlib, or leave --output out"
        ) from error
    figure = Figure(figsize=(INCHES * len(panels), INCHES), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    for number, panel in enumerate(panels, 1):
        _panel(figure.add_subplot(1, len(panels), number), panel)
    drawn = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "merklekv"}):
        figure.savefig(drawn, format=form, metadata={"Date": None} if form == "svg" else None)
    return drawn.getvalue()


def _panel(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    title, numbers, what = panel
    most = max(numbers)
    is_mark = what == DIFFERENT
    rows = [[0.0] * SIDE for _ in range(SIDE)]
    for leaf in range(BUCKETS):
        inner, within = divmod(leaf, LEAVES_PER_INNER)
        row = inner // SQUARE * SQUARE + within // SQUARE
        first = inner * LEAVES_PER_INNER
        tint = TINT if is_mark and any(numbers[first : first + LEAVES_PER_INNER]) else 0.0
        rows[row][inner % SQUARE * SQUARE + within % SQUARE] = max(numbers[leaf], tint)
    colours = "Reds" if is_mark else "viridis"
    image = axes.imshow(rows, cmap=colours, vmin=0, vmax=max(most, 1), interpolation="nearest")
    axes.set_title(title, fontsize=10)
    ticks = [square * SQUARE - 0.5 for square in range(SIDE // SQUARE + 1)]
    axes.set_xticks([tick + SQUARE / 2 for tick in ticks[:-1]], [f"{column:x}" for column in range(SIDE // SQUARE)])
    axes.set_yticks([tick + SQUARE / 2 for tick in ticks[:-1]], [f"{row:x}0" for row in range(SIDE // SQUARE)])
    axes.tick_params(length=0, labelsize=7)
    for tick in ticks:
        axes.axhline(tick, color="grey", linewidth=0.4)
        axes.axvline(tick, color="grey", linewidth=0.4)
    if not is_mark:
        scale = axes.figure.colorbar(image, ax=axes, shrink=0.8, label=f"{what} in a leaf")
        scale.locator = MaxNLocator(integer=True, nbins=min(most, FEW) or 1)
        scale.update_ticks()
