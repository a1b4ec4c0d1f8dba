"""Which backend computes a call: by model name, and within a group as :mod:`gateway.backends.group`.

Several backends that serve the same name are a group for it, in the operator's order; groups of the
same members are one. A name is looked up among the served models first, then as an alias of one; what is left goes
to the backends that take any name (``*``), under the last alias it stands for. ``default``
stands for the first model served.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gateway.backends.base import Backend
from gateway.backends.group import Group, Strategy
from gateway.backends.held import Held
from gateway.errors import ClientFault
from policies.call import DEFAULT_MODEL

ANY_MODEL = "*"
_LONGEST_CHAIN = 8  # an alias may name an alias; a ring of them must end


@dataclass(frozen=True, slots=True)
class Served:
    """A backend and the model names it answers to, in the operator's order.

    ``kv_tokens``: roughly how many tokens its KV cache holds.
    """

    backend: Backend
    models: Sequence[str]
    kv_tokens: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Target:
    """Where a call goes, and the model's name there."""

    backend: Backend
    model: str


class Router:
    """The served models and their aliases. Never changes after the start."""

    def __init__(
        self,
        served: Sequence[Served],
        aliases: Mapping[str, str],
        *,
        strategy: Strategy = "prefix",
        is_open: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._aliases = aliases
        self.backends = tuple(entry.backend for entry in served)
        self.groups: dict[tuple[str, ...], Group] = {}
        wanted: dict[str, list[Served]] = {}
        for entry in served:
            for model in entry.models:
                same = wanted.setdefault(model, [])
                if entry not in same:
                    same.append(entry)
        self._by_model: dict[str, Backend] = {}
        for model, entries in wanted.items():
            backends = [entry.backend for entry in entries]
            names = tuple(backend.name for backend in backends)
            if len(names) > 1 and names not in self.groups:
                self.groups[names] = Group(
                    backends,
                    {entry.backend.name: entry.kv_tokens for entry in entries},
                    model=model,
                    strategy=strategy,
                    is_open=is_open,
                )
            self._by_model[model] = self.groups.get(names, backends[0])
        self._any = self._by_model.pop(ANY_MODEL, None)
        self._first = next(iter(self._by_model), None)
        self._listed: dict[str, str] = {}
        self.held = Held()

    def forget(self, name: str) -> None:
        """The backend has lost its KV cache: it was restarted."""
        for group in self.groups.values():
            group.forget(name)

    def resize(self, name: str, kv_tokens: int) -> None:
        """The backend's KV cache holds so many tokens, as it says itself."""
        for group in self.groups.values():
            group.resize(name, kv_tokens)

    def learn(self, name: str, models: Sequence[str]) -> None:
        """The backend lists these models: for one that takes any name, its first is the default."""
        if models:
            self._listed[name] = models[0]

    def target(self, model: str, *, named: bool = True) -> Target:
        """Where ``model`` is computed. Raises: ClientFault 404 ``model_not_found``.

        ``named``: the client says it. Else a catch-all backend is asked without a model.
        """
        name = model
        for _ in range(_LONGEST_CHAIN):
            if name == DEFAULT_MODEL and self._first is not None:
                name = self._first
            if (backend := self._by_model.get(name)) is not None:
                return Target(backend, name)
            if name not in self._aliases:
                break
            name = self._aliases[name]
        if self._any is not None:
            if model == DEFAULT_MODEL and named:
                return Target(self._any, self._first_listed())
            # There `default` means nothing: better the name that the client knows.
            return Target(self._any, model if name == DEFAULT_MODEL else name)
        raise unknown_model(model)

    def _first_listed(self) -> str:
        assert self._any is not None
        names = self._any.members if isinstance(self._any, Group) else [self._any.name]
        for name in names:
            if name in self._listed:
                return self._listed[name]
        raise ClientFault(
            "default stands for the first model that a backend names. Here the backends take any name, "
            "and none has listed its models. Ask for a model by its name.",
            code="model_not_found",
            status=404,
            param="model",
        )

    def holders(self, thing: str) -> Sequence[Backend]:
        """The backend that holds ``thing``, an id, or all where that is not known."""
        name = self.held.holder([thing])
        return [one for one in self.backends if one.name == name] or self.backends

    def models(self) -> Mapping[str, Backend]:
        """The model names served by name, in the operator's order, and who computes each."""
        return self._by_model

    def aliases(self) -> Mapping[str, str]:
        """Names that stand for another."""
        return self._aliases

    @property
    def catch_all(self) -> Backend | None:
        """The backend that takes any model name, if there is one."""
        return self._any

    def __repr__(self) -> str:
        return f"<Router {len(self._by_model)} models, {len(self.backends)} backends>"


def unknown_model(model: str) -> ClientFault:
    """The error for a name that no backend knows."""
    return ClientFault(
        f"The model {_shown(model)} does not exist here.",
        code="model_not_found",
        status=404,
        param="model",
    )


def _shown(model: str) -> str:
    """The name as it may be echoed: short, and with nothing but printable characters."""
    return repr(model[:64] + ("…" if len(model) > 64 else ""))
