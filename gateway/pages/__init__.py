"""The dashboard's page: HTML, style and scripts as files, served as they are.

It is for: showing an operator what ``gateway.dashboard`` says, on one page, from this machine alone.

It is not: a place that holds any data, nor one that needs a build step: what is here is what a
browser gets. ``vendor`` holds the charts' library with its licence and where it came from.

Read ``dashboard.html`` (what is on the page), then ``dashboard.js`` (key, stream, sections),
``charts.js`` (rows to curves), ``tables.js`` (sections to rows), ``format.js`` (numbers to text).
"""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

PAGE: Final = "dashboard.html"
TYPES: Final = {
    "dashboard.html": "text/html",
    "dashboard.css": "text/css",
    "dashboard.js": "text/javascript",
    "charts.js": "text/javascript",
    "tables.js": "text/javascript",
    "format.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "vendor/uPlot.iife.min.js": "text/javascript",
    "vendor/uPlot.min.css": "text/css",
}
"""All that is served, and nothing else of this folder."""


@dataclass(frozen=True, slots=True)
class File:
    """One file as it is served."""

    body: bytes
    content_type: str
    etag: str


def load() -> dict[str, File]:
    """Every served file by its path below this folder. Raises: OSError when one is missing."""
    folder = files(__name__)
    return {name: _file(folder.joinpath(name).read_bytes(), kind) for name, kind in TYPES.items()}


def _file(body: bytes, content_type: str) -> File:
    return File(body, content_type, hashlib.sha256(body).hexdigest()[:32])
