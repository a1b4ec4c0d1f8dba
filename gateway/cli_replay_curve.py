"""Curves of a sweep: in the terminal by plotille, as a file by matplotlib (the ``plot`` extra)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gateway.cli_remote import CannotAskError
from gateway.whatif_sweep import MEANING, Point, Sweep

HEIGHT: Final = 14
WIDTH: Final = 64
BESIDE: Final = 13
"""Columns that the axis takes."""
MARKS: Final = {"kvgate": "k", "lru": "l", "optimum": "o", "unbounded": "u"}
FORMATS: Final = (".png", ".svg", ".pdf")
TITLE: Final = "found of what was looked for, %"


def in_terminal(sweep: Sweep, points: Sequence[Point]) -> str:
    """Lines of plain text; none for fewer than two points, which are no curve."""
    if len(points) < 2 or not points[0].shares:
        return ""
    import plotille

    figure = plotille.Figure()
    figure.width, figure.height = WIDTH, HEIGHT
    figure.with_colors, figure.origin, figure.with_x_axis = False, False, False
    figure.register_label_formatter(float, _label)
    places = [float(place) for place in range(len(points))]
    for name in points[0].shares:
        figure.plot(places, _percents(points, name))
        figure.scatter(places, _percents(points, name), marker=MARKS[name])
    most = max(max(_percents(points, name)) for name in points[0].shares)
    figure.set_x_limits(min_=-0.05, max_=places[-1] * 1.02)
    figure.set_y_limits(min_=0.0, max_=max(1.0, most * 1.05))
    figure.y_label = "%"
    legend = "  ".join(f"{mark} {name}" for name, mark in MARKS.items() if name in points[0].shares)
    return f"{figure.show()}\n{_ticks(points)}\n{' ' * BESIDE}{legend}; {MEANING[sweep.varied]}"


def _ticks(points: Sequence[Point]) -> str:
    line = ""
    for place, point in enumerate(points):
        column = BESIDE + place * (WIDTH - 2) // (len(points) - 1)
        if len(line) < column:  # labels that would touch the one before are left out
            line = line.ljust(column - len(point.label) // 2 * bool(place)) + point.label
    return line


def to_file(path: Path, sweep: Sweep, points: Sequence[Point]) -> None:
    """A picture, by the file's ending. Raises: CannotAskError in one line."""
    if path.suffix.lower() not in FORMATS:
        raise CannotAskError(f"--plot {path}: must end in {', '.join(FORMATS)}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        message = '--plot needs matplotlib: pip install "kvgate[plot]"'
        raise CannotAskError(message) from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    places = [point.value for point in points]
    for name in points[0].shares:
        axes.plot(places, _percents(points, name), marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [point.label for point in points])
    axes.minorticks_off()
    axes.set_xlabel(MEANING[sweep.varied])
    axes.set_ylabel(TITLE)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path)
    except OSError as error:
        raise CannotAskError(f"--plot {path}: {error.strerror or error}") from None


def _percents(points: Sequence[Point], name: str) -> list[float]:
    return [100 * point.shares[name] for point in points]


def _label(value: float, chars: int, delta: float, left: bool = False) -> str:  # noqa: ARG001 - plotille's own
    return f"{value:.1f}".rjust(chars)
