"""What the commands that talk to a running gateway share: its address, one way to ask, one way to fail.

Exit codes: 0 done; 1 the gateway answered, and the answer is no; 2 it could not be asked (the
command line is wrong, nobody listens there, the key is not known); 130 stopped by Ctrl-C. A failure
is one line on stderr. No proxy is used: it is our own gateway; no redirect is followed: it would
carry the key elsewhere.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from http.client import HTTPResponse

DEFAULT_URL: Final = "http://127.0.0.1:8080"
TIMEOUT_S: Final = 60.0
"""Longer than a gateway is ever silent about a running job."""
NO: Final = 1
NOT_ASKED: Final = 2
STOPPED: Final = 130

Url = Annotated[str, typer.Option(envvar="KVGATE_URL", help="The gateway.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="KVGATE_API_KEY", help="Where the gateway has tenants.", show_default=False
    ),
]


class CannotAskError(Exception):
    """One line that says why; ``code`` is the exit code, ``status`` what the gateway answered."""

    def __init__(self, message: str, *, code: int = NOT_ASKED, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


@dataclass(frozen=True, slots=True)
class Remote:
    """A running gateway. ``timeout_s`` is the longest silence."""

    url: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = TIMEOUT_S

    def ask(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> Any:
        """The JSON it answers. Raises: CannotAskError."""
        with self.opened(method, path, body, headers=headers) as response:
            return self.understood(path, response.status, read(self.url, response))

    @contextmanager
    def opened(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> Iterator["HTTPResponse"]:
        """The response, whatever its status. Raises: CannotAskError.

        ``body`` is sent as JSON, or as it is when it is bytes.
        """
        from http.client import HTTPConnection, HTTPException, HTTPSConnection
        from urllib.parse import urlsplit

        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:
            raise self._no_address() from None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise self._no_address()
        said = {"Accept": "application/json", "Content-Type": "application/json", **(headers or {})}
        if self.api_key:
            said["Authorization"] = f"Bearer {self.api_key}"
        data = body if body is None or isinstance(body, bytes) else _encoded(body)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        with closing(kind(parts.hostname, port, timeout=self.timeout_s)) as connection:
            try:
                connection.request(method, parts.path.rstrip("/") + path, data, said)
                response = connection.getresponse()
            except HTTPException as error:
                raise CannotAskError(
                    f"{self.url} broke off ({type(error).__name__}); is this kvgate?"
                ) from None
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or str(error) or type(error).__name__
                raise CannotAskError(
                    f"{self.url} does not answer ({why}); is `kvgate serve` running there?"
                ) from None
            with response:
                yield response

    def understood(self, path: str, status: int, said: bytes) -> Any:
        """The answer's JSON. Raises: CannotAskError for anything but an answer of kvgate's."""
        strange = f"{self.url}{path} answered {status}; is this kvgate?"
        try:
            answer = json.loads(said)
        except ValueError:
            if 200 <= status < 300:
                strange = f"{self.url}{path} answered something else than JSON; is this kvgate?"
            raise CannotAskError(strange, status=status) from None
        if 200 <= status < 300:
            return answer
        if status == 401:
            raise CannotAskError(
                f"{self.url} wants an API key it knows: --api-key or KVGATE_API_KEY", status=status
            )
        try:
            error = answer["error"]
            message, param = str(error["message"]), error.get("param")
        except (TypeError, KeyError, AttributeError):
            raise CannotAskError(strange, status=status) from None
        named = f"{param}: " if param and str(param) not in message else ""
        raise CannotAskError(plain(f"{named}{message}"), code=NO, status=status)

    def _no_address(self) -> CannotAskError:
        return CannotAskError(f"{self.url} is no address: it must start with http:// or https://")


def read(url: str, response: "HTTPResponse", *, one_line: bool = False) -> bytes:
    """The rest of an answer, or a line of it. Raises: CannotAskError."""
    from http.client import HTTPException

    try:
        return response.readline() if one_line else response.read()
    except (OSError, HTTPException, ValueError) as error:
        raise CannotAskError(
            f"{url} broke off in the middle of its answer ({type(error).__name__})"
        ) from None


@contextmanager
def one_line() -> Iterator[None]:
    """Errors within become one line on stderr and an exit code; Ctrl-C becomes 130."""
    try:
        yield
    except CannotAskError as error:
        typer.echo(f"kvgate: {error}", err=True)
        raise typer.Exit(error.code) from None
    except KeyboardInterrupt:
        raise typer.Exit(STOPPED) from None


def plain(text: object) -> str:
    """``text`` as a terminal may be shown it, whoever wrote it: no control characters."""
    from gateway.logs import escaped

    return escaped(str(text))


def _encoded(body: Any) -> bytes:
    return json.dumps(body, default=str).encode()
