"""A real limit on the memory of a child process: a control group where this machine lets us make one.

Elsewhere it is a limit on the process's data (``RLIMIT_DATA``), which the gateway reads as well.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TOPS = (  # where groups are made, and what their limit is called: version 1, version 2
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)
ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
LIMIT = (
    "import os, resource, sys; size = int(sys.argv[1]);"
    "resource.setrlimit(resource.RLIMIT_DATA, (size, size)); os.execvp(sys.argv[2], sys.argv[2:])"
)


@contextmanager
def limited_to(size_bytes: int) -> Iterator[tuple[str, ...]]:
    """What to put in front of a command, so that it may take so much memory and no more."""
    for top, limit in TOPS:
        group = top / f"kvgate-test-{os.getpid()}-{time.monotonic_ns()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(size_bytes))
        except OSError:
            group.rmdir()
            continue
        try:
            yield (str(shutil.which("sh")), "-c", ENTER, str(group))
        finally:
            with suppress(OSError):
                group.rmdir()
        return
    yield (sys.executable, "-c", LIMIT, str(size_bytes))
