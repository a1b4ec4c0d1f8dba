"""``/v1/models``: what can be asked for; and requests that are no model call, passed on."""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, unquote

from aiohttp import web

from gateway import exact_json
from gateway.auth import Authenticator
from gateway.backends.base import Backend, Forwarded
from gateway.errors import KEY_REFUSED, BackendFault, ClientFault, GatewayError, key_refused
from gateway.router import Router, unknown_model
from gateway.routes.shape import body_of, json_response, object_of

OWNER: Final = "kvgate"
_HAS_NO_SUCH_THING: Final = frozenset({404, 405})
FORWARDED: Final = (
    ("GET", "chat/completions/{id}"),
    ("POST", "chat/completions/{id}"),
    ("DELETE", "chat/completions/{id}"),
    ("GET", "chat/completions/{id}/messages"),
    ("POST", "responses/input_tokens"),
    ("POST", "responses/compact"),
    ("GET", "responses/{id}"),
    ("DELETE", "responses/{id}"),
    ("POST", "responses/{id}/cancel"),
    ("GET", "responses/{id}/input_items"),
)
"""OpenAI's routes about one thing whose id the client knows, or about no stored thing."""


class Models:
    """The list of models, one model, and the pass-through of stored completions."""

    def __init__(self, *, authenticator: Authenticator, router: Router, started_s: float) -> None:
        self._authenticator = authenticator
        self._router = router
        self._started_s = int(started_s)

    async def list(self, request: web.Request) -> web.Response:
        """Every model by name and alias; a backend for any name is asked for its own list."""
        self._authenticator.principal(request.headers)
        listed = {name: self._card(name, name) for name in self._router.models()}
        if (backend := self._router.catch_all) is not None:
            for model in await _models_of(backend):
                listed.setdefault(str(model.get("id")), self._completed(model))
        for alias in self._router.aliases():
            if (name := self._name_of(alias)) is not None:
                listed.setdefault(alias, self._card(alias, name))
        return json_response({"object": "list", "data": list(listed.values())})

    async def one(self, request: web.Request) -> web.StreamResponse:
        """One model. Raises: ClientFault 404; BackendFault."""
        self._authenticator.principal(request.headers)
        model = request.match_info["model"]
        target = self._router.target(model)
        if target.model in self._router.models():
            return json_response(self._card(model, target.model))
        return json_response(self._completed(await _model_of(target.backend, target.model)))

    async def manage(self, request: web.Request) -> web.StreamResponse:
        """What is about all that lies at the backend: list stored completions, delete a model.

        No local process and no web page may do that without a key. Raises: as :meth:`forward`.
        """
        if self._authenticator.is_open:
            raise ClientFault(
                "This route needs the key of a tenant with `admin: true`, and no tenants are configured.",
                code="admin_only",
                status=403,
            )
        return await self.forward(request)

    async def forward(self, request: web.Request) -> web.StreamResponse:
        """What only a foreign backend can answer: stored completions, deleting a model.

        They live at the backend under the operator's one key, not under a tenant: only the open
        tenant and an admin may reach them. Raises: ClientFault 403, 404; BackendFault.
        """
        principal = self._authenticator.principal(request.headers)
        if not principal.admin:
            raise ClientFault("This route is for admin keys only.", code="admin_only", status=403)
        thing = request.match_info.get("id")
        catch_all = self._router.catch_all
        if thing is not None:
            backends = self._router.holders(thing)
        elif catch_all is not None:
            backends = [catch_all]
        else:
            raise ClientFault("No backend here serves this route.", code="not_found", status=404)
        query = request.rel_url.raw_query_string
        path = request.rel_url.raw_path.removeprefix("/v1")
        if {".", "..", ""} & set(unquote(path).split("/")[1:]):
            raise ClientFault("No such route.", code="unknown_url", status=404)
        raw = _without_ours(await body_of(request))
        answer = await self._first_that_knows(
            backends, thing, request.method, path + (f"?{query}" if query else ""), raw
        )
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)

    async def _first_that_knows(
        self, backends: Sequence[Backend], thing: str | None, method: str, path_qs: str, raw: bytes
    ) -> Forwarded:
        """The answer of the first backend that has the thing. Raises: BackendFault.

        That none has it is certain only when all could be asked.
        """
        missed: BackendFault | None = None
        answer: Forwarded | None = None
        for backend in backends:
            try:
                answer = await backend.forward(method, path_qs, raw)
            except BackendFault as fault:
                missed = missed or fault
                continue
            if answer.status in KEY_REFUSED:
                missed = missed or key_refused(backend.name, answer.status, answer.body)
            elif answer.status not in _HAS_NO_SUCH_THING:
                if thing is not None and answer.status < 300:
                    self._router.held.note([thing], backend.name)
                return answer
        if missed is not None:
            raise missed
        assert answer is not None  # there is a backend, and it answered
        return answer

    def _name_of(self, alias: str) -> str | None:
        try:
            return self._router.target(alias).model
        except GatewayError:
            return None

    def _completed(self, model: Mapping[str, Any]) -> Mapping[str, Any]:
        """A backend's own card with the members that OpenAI's schema requires."""
        name = str(model.get("id"))
        return {**self._card(name, name), "owned_by": "upstream", **model}

    def _card(self, name: str, served_as: str) -> Mapping[str, Any]:
        card = {"id": name, "object": "model", "created": self._started_s, "owned_by": OWNER}
        return card if name == served_as else {**card, "parent": served_as}


def _without_ours(raw: bytes) -> bytes:
    """The body as it came, or less what is for us alone. Raises: ClientFault 400."""
    if b'"kv_cache"' not in raw:
        return raw
    body = object_of(raw)
    body.pop("kv_cache", None)
    try:
        return exact_json.dumps(body)
    except exact_json.JSONEncodeError as error:
        raise ClientFault("The body is nested too deep.", code="invalid_value") from error


async def _model_of(backend: Backend, name: str) -> dict[str, Any]:
    """The card of a model by its own route, else from the list: not every server has both.

    Raises: ClientFault 404 ``model_not_found``; BackendFault.
    """
    # The name alone goes on, never the client's path or query: any key may ask this.
    path = f"/models/{quote(name)}"
    if not {".", "..", ""} & set(name.split("/")):
        answer = await backend.forward("GET", path, b"")
        if answer.status in KEY_REFUSED:
            raise key_refused(backend.name, answer.status, answer.body)
        if answer.status < 300 and (card := _card_in(answer.body)) is not None:
            return card
        for model in await _models_of(backend):
            if model.get("id") == name:
                return model
    raise unknown_model(name)


def _card_in(raw: bytes) -> dict[str, Any] | None:
    try:
        found = exact_json.loads_answer(raw)
    except exact_json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("id"), str) else None


async def _models_of(backend: Backend) -> list[dict[str, Any]]:
    try:
        return await backend.models()
    except GatewayError:
        return []  # the list of what is known by name is still true
