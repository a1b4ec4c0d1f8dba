"""A child that keeps the engine's side of the bargain: flags, port file, /healthz, exit codes.

Started as a script. ``KVGATE_TEST_FAKE`` says how it behaves: words with a comma between, e.g.
``unready-until=/path,deaf``. It appends one JSON line per start to ``KVGATE_TEST_STARTS``.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--port-file", type=Path, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    flags = parser.parse_args()
    wishes = dict(
        word.partition("=")[::2] for word in os.environ.get("KVGATE_TEST_FAKE", "").split(",")
    )
    starts = Path(os.environ["KVGATE_TEST_STARTS"])
    with starts.open("a") as file:
        line = {"pid": os.getpid(), "sid": os.getsid(0), "env": dict(os.environ)}
        file.write(json.dumps(line) + "\n")
    if "deaf" in wishes:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "say" in wishes:
        print("first words\n\x1b[31m" + wishes["say"] + "\x1b[0m\n", file=sys.stderr)
    if "exit" in wishes and not Path(wishes.get("unless", "/nowhere")).exists():
        sys.exit(int(wishes["exit"]))
    threading.Thread(target=watch, args=(flags.parent_pid,), daemon=True).start()
    serve(flags.host, flags.port, flags.port_file, Path(wishes.get("unready-until", "/")))


def watch(parent: int) -> None:
    """End when the parent has ended, as the real one does."""
    while os.getppid() == parent:
        time.sleep(0.02)
    os._exit(1)


def serve(host: str, port: int, port_file: Path, gate: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if gate.exists() else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((host, port), Handler)
    partial = port_file.with_suffix(".part")
    partial.write_text(str(server.server_port))
    partial.replace(port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
