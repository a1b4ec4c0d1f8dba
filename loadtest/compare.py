"""kvgate beside its peers, on one machine in one run: ratios, JSON, a table and a picture.

``python -m loadtest.compare [--quick] [--only gateway,engine] [--into FILE] [--readme]``
``python -m loadtest.compare --install``     put LiteLLM into a virtual environment of its own
``python -m loadtest.compare --show FILE``   print the table of earlier results again

For the gateway: a bare aiohttp server, a minimal pass-through, nginx's proxy_cache and LiteLLM's
proxy, all before the same mock upstream; for the engine: llama.cpp's server. A peer that is not there
is named and left out. With ``--into`` the parts that were measured replace those in FILE and the
others stay, so that a run can be cut into pieces. ``--readme`` writes the table into README.md.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markdown import Markdown

from loadtest import compare_plot, comparison, peers, report
from loadtest.comparison import Part
from loadtest.processes import HERE, end_properly

PARTS: Final = ("gateway", "engine")
README: Final = HERE.parent / "README.md"


def parts_of(said: str) -> Sequence[str]:
    """``gateway,engine`` as names. Raises: argparse.ArgumentTypeError."""
    names = [name.strip() for name in said.split(",") if name.strip()]
    if not names or (unknown := [name for name in names if name not in PARTS]):
        wrong = f"unknown part {unknown[0]!r}" if names else "no part"
        raise argparse.ArgumentTypeError(f"{wrong}; there are {', '.join(PARTS)}")
    return names


def measure(names: Sequence[str], *, quick: bool) -> dict[str, Part]:
    """The parts of these names."""
    found = {}
    if "gateway" in names:
        from loadtest import compare_gateway

        rounds, seconds = (3, 0.5) if quick else (7, 1.0)
        found["gateway"] = compare_gateway.measure(rounds=rounds, seconds=seconds)
    if "engine" in names:
        from loadtest import compare_engine

        repeat, tokens, seconds = (2, 48, 150) if quick else (7, 192, 900)
        found["engine"] = compare_engine.measure(repeat=repeat, tokens=tokens, seconds=seconds)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--only", type=parts_of, default=PARTS, help="parts, comma-separated")
    parser.add_argument("--into", type=Path, help="results to put these into")
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    parser.add_argument("--show", type=Path, help="measure nothing, print these results")
    parser.add_argument("--install", action="store_true", help="fetch LiteLLM for it, and end")
    asked = parser.parse_args()
    end_properly()
    if asked.install:
        peers.install()
        return
    console = Console(width=150)
    if asked.show:
        results, path = read(asked.show), asked.show
    else:
        before = read(asked.into) if asked.into and asked.into.exists() else {}
        results = comparison.merged(before, measure(asked.only, quick=asked.quick))
        path = asked.into or report.write("compare", results)
        path.write_text(json.dumps(results, indent=1) + "\n")
    text = comparison.section(results)
    console.print(Markdown(text))
    console.print(
        f"results: {path}; picture: {compare_plot.draw(results, path.with_suffix('.png'))}"
    )
    if asked.readme:
        README.write_text(comparison.replaced(README.read_text(), text))


def read(path: Path) -> dict[str, Any]:
    """Earlier results. Raises: SystemExit with what is wrong with them."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        found["parts"].items()
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise SystemExit(f"{path}: no results of loadtest.compare: {error!r}") from error
    return found


if __name__ == "__main__":
    main()
