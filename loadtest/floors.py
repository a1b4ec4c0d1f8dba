"""What kvgate is compared with: the least that aiohttp can do for the same request.

``python -m loadtest.floors bare --port 9200 --body-bytes 1100``
    answers every POST with the same body and reads nothing: the floor of a hit.
``python -m loadtest.floors pass-through --port 9300 --upstream http://127.0.0.1:9000``
    reads the request, asks the upstream over pooled connections, hands its bytes on: the floor of
    a miss.
"""

import argparse
from collections.abc import AsyncIterator
from typing import Final

import aiohttp
from aiohttp import web

from loadtest.mock_upstream import run

PATH: Final = "/v1/chat/completions"


def bare(body_bytes: int) -> web.Application:
    """An application that answers ``body_bytes`` bytes of JSON."""
    body = b'{"text":"' + b"x" * max(0, body_bytes - 11) + b'"}'

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    app = web.Application(client_max_size=64 << 20)
    app.router.add_post(PATH, answer)
    return app


def pass_through(upstream: str) -> web.Application:
    """An application that asks ``upstream`` for each request and hands the answer on."""
    session_of: web.AppKey[aiohttp.ClientSession] = web.AppKey("session", aiohttp.ClientSession)

    async def hold_session(app: web.Application) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        async with aiohttp.ClientSession(connector=connector) as session:
            app[session_of] = session
            yield

    async def answer(request: web.Request) -> web.StreamResponse:
        async with request.app[session_of].post(
            upstream + request.path,
            data=await request.read(),
            headers={"Content-Type": "application/json"},
        ) as given:
            if given.content_type != "text/event-stream":
                return web.Response(
                    body=await given.read(), status=given.status, content_type=given.content_type
                )
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            async for piece in given.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response

    app = web.Application(client_max_size=64 << 20)
    app.cleanup_ctx.append(hold_session)
    app.router.add_post(PATH, answer)
    return app


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("which", choices=("bare", "pass-through"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--body-bytes", type=int, default=1100)
    parser.add_argument("--upstream", default="http://127.0.0.1:9000")
    asked = parser.parse_args()
    app = bare(asked.body_bytes) if asked.which == "bare" else pass_through(asked.upstream)
    run(app, asked.port)


if __name__ == "__main__":
    main()
