"""llama.cpp's own server as a child process, for tests of what a real peer does with our requests.

``xllamacpp``, which the test extra carries, is that server in C++ without its command line; run as
``python -m tests.kit.llama_peer MODEL KEY`` this module is that command line: one slot, a free
port, and its URL as the first line on standard output.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CONTEXT_TOKENS: Final = 2048


@contextmanager
def llama_server(model: Path, key: str) -> Iterator[str]:
    """A running server that wants ``key``; gives what a config calls ``base_url``."""
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.kit.llama_peer", str(model), key],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environ,
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url, "llama.cpp's server did not start"
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def main() -> None:
    """Serve until SIGTERM."""
    import xllamacpp

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    params = xllamacpp.CommonParams()
    params.model.path, key = sys.argv[1:]
    params.api_keys = [key]
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_ctx, params.n_parallel, params.warmup = CONTEXT_TOKENS, 1, False
    # A second thread would spin for the first, on cores that the test's other processes need.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM})
    os._exit(0)  # nothing of it outlives the test


if __name__ == "__main__":
    main()
