"""A backend that answers checks as a test says."""

from gateway.backends.base import Forwarded
from gateway.errors import BackendFault

LISTED = Forwarded(200, {}, b'{"data": [{"id": "m1"}, {"id": "m2"}, "nonsense"]}')
GONE = BackendFault("up cannot be reached", code="backend_unreachable", cause="unreachable")


class Checkable:
    """Answers checks as told: by path, with a status, an answer or an error."""

    def __init__(self, models: Forwarded | BackendFault, health: int | None = None) -> None:
        self.name = "up"
        self.models = models
        self.health = health
        self.better: Forwarded = Forwarded(404, {}, b"")
        self.paths: list[str] = []

    async def check_health(self) -> Forwarded | None:
        if self.health is None:
            return None
        self.paths.append("/health")
        return Forwarded(self.health, {}, b"")

    async def check(self, path: str) -> Forwarded:
        self.paths.append(path)
        if path != "/models":
            return self.better
        if isinstance(self.models, BackendFault):
            raise self.models
        return self.models
