"""The comparison as a picture: a bar for each measure and peer, on a scale of powers of ten."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from loadtest.comparison import OURS, row_of
from loadtest.stats import figure

DPI: Final = 110


def draw(results: Mapping[str, Any], path: Path) -> str:
    """Write a PNG; returns where, or why there is none."""
    if importlib.util.find_spec("matplotlib") is None:
        return "none, matplotlib is not installed (extra peers)"
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    parts = [part for part in results["parts"].values() if bars(part)]
    if not parts:
        return "none, there is nobody to compare with"
    heights = [sum(map(len, bars(part).values())) + 1 for part in parts]
    figure_, axes = plt.subplots(
        len(parts), figsize=(9, 0.24 * sum(heights) + 1.2), height_ratios=heights, squeeze=False
    )
    for axis, part in zip(axes[:, 0], parts, strict=True):
        _panel(axis, bars(part), sorted({peer for found in bars(part).values() for peer in found}))
    figure_.suptitle("How many times as good kvgate is (1 = as good)", fontsize=11)
    figure_.tight_layout()
    figure_.savefig(path, dpi=DPI)
    plt.close(figure_)
    return path.name


def bars(part: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """For each measure the median ratio to each peer that has one."""
    found = {}
    for data in part["rows"]:
        row = row_of(data)
        peers = {
            peer: ratio.median
            for peer in row.runs
            if peer != OURS and (ratio := row.times_as_good(peer)) is not None
        }
        if peers:
            found[row.what] = peers
    return found


def _panel(axis: Any, found: Mapping[str, Mapping[str, float]], peers: list[str]) -> None:
    place, ticks = 0.0, []
    for what, ratios in found.items():
        first = place
        for peer, ratio in ratios.items():
            colour = f"C{peers.index(peer)}"
            axis.barh(place, ratio - 1, left=1, color=colour, height=0.8, label=peer)
            axis.annotate(
                f"{figure(ratio)}", (ratio, place), fontsize=7, va="center",
                ha="left" if ratio >= 1 else "right", xytext=(3 if ratio >= 1 else -3, 0),
                textcoords="offset points",
            )  # fmt: skip
            place += 1
        ticks.append(((first + place - 1) / 2, what))
        place += 0.5
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    axis.set_xlim(low / 1.6, high * 1.6)
    axis.set_yticks([at for at, _ in ticks], [what for _, what in ticks], fontsize=8)
    axis.invert_yaxis()
    axis.axvline(1, color="black", linewidth=0.8)
    seen = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    axis.legend(seen.values(), seen.keys(), fontsize=8, loc="best")
