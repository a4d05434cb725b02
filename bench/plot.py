"""Plots of one run: a roofline of the kernels, and a whole model's tokens per second by text length.

matplotlib draws them. The `bench` extra installs matplotlib, and it is imported only when a plot is requested.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lastword.bench.kernels.table import OURS, Row, format_bandwidth, format_speed
from lastword.bench.measure import Peaks
from lastword.errors import ConfigError, require_extra

_MARKERS = "osD^vP*X"


def check_plot(path: Path) -> None:
    """Check that a plot can be written to `path`; callers do so before they spend minutes on measuring.

    Args:
        path: the file to write.

    Raises:
        ConfigError: the name does not end in .svg or .png, or the folder or matplotlib is missing.
    """
    if path.suffix not in (".svg", ".png"):
        expected = "a name that ends in .svg or .png"
        raise ConfigError("--plot", "unknown ending", got=repr(path.name), expected=expected)
    if not path.parent.is_dir():
        got = repr(str(path.parent))
        raise ConfigError("--plot", "no such folder", got=got, remedy="Make it first.")
    with require_extra("matplotlib", "bench", "--plot"):
        import matplotlib as mpl  # noqa: F401


def plot_roofline(
    path: Path, rows: Sequence[Row], peaks: Peaks, about: Mapping[str, object]
) -> None:
    """Draw a roofline plot with a point for every timed row: colour for the operation, marker for the implementation.

    Args:
        path: the file to write, .svg or .png.
        rows: the run's rows; those without a time are not drawn.
        peaks: the peaks of the same run.
        about: from `describe_run`, for the title.
    """
    from matplotlib.figure import Figure

    timed = [row for row in rows if row.timing is not None]
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    ridge = peaks.flops_per_s / peaks.bytes_per_s
    intensities = [row.flops / row.bytes for row in timed]
    left, right = min([0.1, *intensities]) / 2, max([ridge, *intensities]) * 4
    axes.plot(
        [left, ridge, right],
        [left * peaks.bytes_per_s, peaks.flops_per_s, peaks.flops_per_s],
        color="black",
        label=f"{format_bandwidth(peaks.bytes_per_s)}, {format_speed(peaks.flops_per_s)}",
    )
    colours = {op: f"C{i}" for i, op in enumerate(dict.fromkeys(row.op for row in timed))}
    makers = dict.fromkeys(row.by for row in timed)
    markers = {by: _MARKERS[i % len(_MARKERS)] for i, by in enumerate(makers)}
    for row in timed:
        assert row.timing is not None
        axes.plot(
            row.flops / row.bytes,
            row.flops / (row.timing.median_ms / 1e3),
            color=colours[row.op],
            marker=markers[row.by],
            fillstyle="full" if row.by == OURS else "none",
            linestyle="none",
        )
    for name, colour in colours.items():
        axes.plot([], [], color=colour, linewidth=6, label=name)
    for name, marker in markers.items():
        axes.plot([], [], color="grey", marker=marker, linestyle="none", label=name)
    axes.set_xlabel("operations per byte")
    axes.set_ylabel("operations per second")
    axes.set_title(f"{about['device']}, {about['dtype']}, torch {about['torch']}, {about['date']}")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend(fontsize="small")
    figure.savefig(path)


def plot_lengths(
    path: Path,
    lengths: Sequence[int],
    limit: tuple[str, Sequence[float]],
    reached: Mapping[str, Sequence[float]],
    about: Mapping[str, object],
) -> None:
    """Draw tokens per second by text length: the curve of the limit, and the measured curves.

    Args:
        path: the file to write, .svg or .png.
        lengths: tokens per text.
        limit: a label, and tokens per second for each length.
        reached: measured tokens per second for each length, by label.
        about: from `describe_run`, for the title.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log")
    name, values = limit
    axes.plot(lengths, values, color="black", linestyle="--", marker=".", label=name)
    for (name, values), marker in zip(reached.items(), _MARKERS, strict=False):
        axes.plot(lengths, values, marker=marker, label=name)
    axes.set_ylim(bottom=0)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel("tokens per text")
    axes.set_ylabel("tokens per second")
    axes.set_title(f"{about['device']}, {about['dtype']}, torch {about['torch']}, {about['date']}")
    axes.grid(visible=True, alpha=0.2)
    axes.legend(fontsize="small")
    figure.savefig(path)
