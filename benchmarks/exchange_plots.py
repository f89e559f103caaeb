"""The curves of exchange.py as a picture: bytes above, time below, an exchange beside the naive copy of everything."""

from pathlib import Path

import matplotlib as mpl

AXES = {"differing": "keys that differ", "sizes": "keys in each node, of which a hundred differ"}
X = {"differing": "differing", "sizes": "keys"}


def plot(curves: dict[str, list[dict[str, float]]], where: dict[str, str], path: Path) -> None:
    """Writes a PNG with a column for each curve."""
    mpl.use("Agg")
    from matplotlib import pyplot  # only now: it settles how it draws when it is imported

    drawing, axes = pyplot.subplots(2, len(curves), squeeze=False, figsize=(6 * len(curves), 8))
    for column, (name, curve) in enumerate(curves.items()):
        across = [point[X[name]] for point in curve]
        for ax, measure, unit in zip(axes[:, column], ("bytes", "ms"), ("bytes on the wire", "ms"), strict=True):
            ax.loglog(across, [point[measure] for point in curve], "o-", label="exchange, both ways")
            naive = [point[f"naive_{measure}"] for point in curve]
            ax.loglog(across, naive, "s--", label="sending everything, one way")
            ax.set_xlabel(AXES[name])
            ax.set_ylabel(unit)
            ax.grid(alpha=0.3)
            ax.legend(fontsize="small")
    drawing.suptitle(f"{where['processor']}, {where['disk']}, {where['time']}", fontsize="small")
    drawing.tight_layout()
    drawing.savefig(path, dpi=120)
    pyplot.close(drawing)
