"""Traces of prompts as chains of block ids (Mooncake's JSON lines, plain or gzipped)."""

import gzip
import json
from pathlib import Path


class TraceError(Exception):
    """Not a trace; the message names the line."""


def chains(path: Path) -> list[list[int]]:
    """The ``hash_ids`` of each request, in the file's order. Raises: OSError, TraceError."""
    opener = gzip.open if path.suffix == ".gz" else open
    found = []
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                chain = json.loads(line)["hash_ids"]
            except (ValueError, KeyError, TypeError) as error:
                raise TraceError(f"{path}:{number}: no request with hash_ids") from error
            found.append([int(block) for block in chain])
    return found
