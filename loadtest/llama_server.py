"""llama.cpp's own server from the package ``xllamacpp``, for comparing.

``python -m loadtest.llama_server MODEL --port 9500 --threads 2 --slots 8 --context 65536``

All else stays as llama.cpp has it: flash attention where it helps, prompts kept in the slots and, of
idle slots, in memory (8 GiB), continuous batching.
"""

import argparse
import os
import signal


def main() -> None:
    """Serve until SIGTERM."""
    import xllamacpp

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens, of all slots together")
    asked = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    params = xllamacpp.CommonParams()
    params.model.path = asked.model
    params.hostnames, params.port = ["127.0.0.1"], asked.port
    params.n_ctx, params.n_parallel = asked.context, asked.slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked.threads
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM})
    os._exit(0)  # nothing of it outlives the comparison


if __name__ == "__main__":
    main()
