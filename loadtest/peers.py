"""The servers that kvgate is compared with: where they are found, how they are started.

None of them is needed by anything else. One that is not there is told by :class:`AbsentError`, and
the comparison goes on without it:

* nginx: the distribution's package, put there by hand (``apt install nginx-light``);
* LiteLLM's proxy: it pins other versions of our own dependencies, so it lives in a virtual environment
  of its own, in the user's cache folder, made by ``python -m loadtest.compare --install``;
* llama.cpp's server: the package ``xllamacpp`` (extra ``peers``).
"""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import venv
from pathlib import Path
from typing import Final

import yaml

from loadtest.mock_upstream import Shape
from loadtest.processes import Program, Server, free_port

LITELLM: Final = "litellm[proxy]>=1.100,<2"
LITELLM_READY_S: Final = 120.0
LLAMA_READY_S: Final = 60.0
LLAMA_SLOTS: Final = 8
LLAMA_CONTEXT_TOKENS: Final = 8192
LITELLM_QUIET: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # its price list is asked for over the network otherwise
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_TELEMETRY": "False",
    "NO_DOCS": "True",
    "DISABLE_ADMIN_UI": "True",
}
"""What its own guide sets in production."""


class AbsentError(Exception):
    """A peer is not there; the message says how to get it."""


def place() -> Path:
    """Where LiteLLM's virtual environment is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "kvgate" / "peers" / "litellm"


def install() -> None:
    """Make LiteLLM's virtual environment. Raises: subprocess.CalledProcessError."""
    venv.EnvBuilder(with_pip=True).create(place())
    subprocess.run(
        [place() / "bin" / "python", "-m", "pip", "install", "--quiet", LITELLM], check=True
    )


def litellm(folder: Path, upstream: str, key: str, core: int | None) -> tuple[Program, str]:
    """LiteLLM's proxy with its local cache, and its version. It does not start without a key.

    Raises: AbsentError.
    """
    python = place() / "bin" / "python"
    if not python.exists():
        raise AbsentError("not installed: `python -m loadtest.compare --install`")
    code = "import importlib.metadata as m; print(m.version('litellm'))"
    asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise AbsentError("its environment is not whole: `python -m loadtest.compare --install`")
    config = folder / "litellm.yaml"
    config.write_text(litellm_config(upstream))
    port = free_port()
    command = [
        str(python), "-m", "litellm.proxy.proxy_cli", "--config", str(config),
        "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1",
    ]  # fmt: skip
    program = Program(
        command, port, core=core, ready_path="/health/liveliness", ready_s=LITELLM_READY_S,
        environment={**LITELLM_QUIET, "LITELLM_MASTER_KEY": key}, log=folder / "litellm.log",
    )  # fmt: skip
    return program, asked.stdout.strip()


def litellm_config(upstream: str) -> str:
    """One model, the local cache, no retries."""
    model = {"model": "openai/m", "api_base": f"{upstream}/v1", "api_key": "none"}
    settings = {
        "telemetry": False,
        "num_retries": 0,
        "set_verbose": False,
        "cache": True,
        "cache_params": {"type": "local"},
    }
    return yaml.safe_dump(
        {
            "model_list": [{"model_name": "m", "litellm_params": model}],
            "litellm_settings": settings,
        }
    )


def nginx(folder: Path, upstream_port: int, core: int | None) -> tuple[Program, str]:
    """nginx with proxy_cache for POST, keyed by address and body. Raises: AbsentError."""
    binary = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if binary is None:
        raise AbsentError("not installed: the system's package nginx-light")
    asked = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True)
    port = free_port()
    for name in ("cache", "temporary"):
        (folder / "nginx" / name).mkdir(parents=True, exist_ok=True)
    config = folder / "nginx" / "nginx.conf"
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    config.write_text(nginx_config(folder / "nginx", port, upstream_port, core=core, root=root))
    command = [binary, "-e", str(folder / "nginx" / "error.log"), "-c", str(config)]
    return Program(command, port, log=folder / "nginx.log"), asked.stderr.rpartition("/")[2].strip()


def nginx_config(
    folder: Path, port: int, upstream_port: int, *, core: int | None, root: bool
) -> str:
    """One worker, pinned; answers kept for an hour; one request of equals goes on."""
    pinned = "" if core is None else f"worker_cpu_affinity {1 << core:b};"
    temporary = " ".join(
        f"{kind}_temp_path {folder}/temporary/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
{"user root;" if root else ""}
worker_processes 1; {pinned} daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 10000000; keepalive_timeout 300s; {temporary}
  proxy_cache_path {folder}/cache levels=1:2 keys_zone=c:64m max_size=1g inactive=60m use_temp_path=off;
  upstream up {{ server 127.0.0.1:{upstream_port}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port}; client_max_body_size 64m;
    location /v1/ {{
      proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_cache c; proxy_cache_methods POST; proxy_cache_key "$request_uri|$request_body";
      proxy_cache_valid 200 60m; proxy_cache_lock on; proxy_ignore_headers Cache-Control;
    }}
  }}
}}
"""


def llama_cpp(folder: Path, model: Path, *, threads: int) -> tuple[Program, str]:
    """llama.cpp's server in its defaults, eight slots with full context. Raises: AbsentError."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise AbsentError("not installed: `pip install '.[peers]'`")
    server = Server(
        "loadtest.llama_server", str(model), "--port", "{port}", "--threads", str(threads),
        "--slots", str(LLAMA_SLOTS), "--context", str(LLAMA_SLOTS * LLAMA_CONTEXT_TOKENS),
        ready_path="/health", ready_s=LLAMA_READY_S, log=folder / "llama.log",
    )  # fmt: skip
    return server, importlib.metadata.version("xllamacpp")


def mock(core: int | None, shape: Shape) -> Server:
    """The upstream behind all gateways."""
    return Server(
        "loadtest.mock_upstream", "--port", "{port}", "--chunks", str(shape.chunks),
        "--chunk-ms", str(shape.chunk_ms), core=core,
    )  # fmt: skip
