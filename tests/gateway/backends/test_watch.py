"""When a backend is checked, and what the checks bring about."""

from collections.abc import Sequence

from structlog.testing import capture_logs

from gateway.backends.health import Health
from gateway.backends.watch import Upstream, Watch
from tests.kit.checkable import GONE, LISTED, Checkable
from tests.kit.clock import Clock, Ticks


class Guard:
    """A watch over one backend, whose sleeps end when a test says so."""

    def __init__(self, backend: Checkable, failures: int = 3) -> None:
        self.clock, self.ticks = Clock(), Ticks()
        self.health = Health(
            clock=self.clock.monotonic, draw=lambda: 0.0, failures=failures, pause_s=5.0
        )
        self.backend = backend
        self.watch = Watch(self.health, clock=self.clock.monotonic, sleep=self.ticks.sleep)
        self.watch.add(backend)
        self.learned: list[tuple[str, Sequence[str]]] = []

    async def start(self) -> None:
        upstream = Upstream(self.backend, "http://up", ["m1"])
        await self.watch.start([upstream], lambda *said: self.learned.append(said))


async def test_a_dead_backend_is_checked_every_second_until_it_is_alive() -> None:
    guard = Guard(Checkable(GONE))
    guard.health.lost("up", reached=True)
    for _ in range(3):
        await guard.ticks.tick()
    await guard.ticks.slept_once()
    assert (guard.health.state("up"), len(guard.backend.paths)) == ("down", 4)
    guard.backend.models = LISTED
    await guard.ticks.tick()
    await guard.ticks.slept_once()
    assert guard.health.is_open("up")
    assert guard.ticks.slept == [1.0] * 5
    await guard.watch.close()


async def test_a_backend_that_is_alive_stays_up_however_often_its_connections_break() -> None:
    guard = Guard(Checkable(LISTED))
    for _ in range(50):
        guard.health.lost("up", reached=True)
    await guard.ticks.slept_once()
    assert guard.health.state("up") == "up"
    assert guard.backend.paths == ["/models"]  # one check a second
    guard.health.lost("up", reached=True)
    await guard.ticks.tick()
    await guard.ticks.slept_once()
    assert guard.backend.paths == ["/models"] * 2
    await guard.watch.close()


async def test_a_backend_whose_own_route_says_so_is_down() -> None:
    guard = Guard(Checkable(LISTED, health=503))
    for _ in range(3):
        guard.health.erred("up")
    await guard.ticks.slept_once()
    assert guard.health.state("up") == "down"
    guard.backend.health = 200
    await guard.ticks.tick()
    await guard.ticks.slept_once()
    assert guard.health.state("up") == "up"
    await guard.watch.close()


async def test_the_start_learns_the_models_and_says_nothing_of_what_is_well() -> None:
    guard = Guard(Checkable(LISTED))
    assert guard.watch.is_reachable("up")  # nothing is known against it
    with capture_logs() as lines:
        await guard.start()
    assert guard.learned == [("up", ("m1", "m2"))]
    assert guard.watch.is_reachable("up")
    assert lines == []


async def test_the_start_says_what_is_wrong_and_goes_on_asking() -> None:
    guard = Guard(Checkable(GONE))
    with capture_logs() as lines:
        await guard.start()
    assert lines[0]["says"] == "http://up: up cannot be reached"
    assert not guard.watch.is_reachable("up")
    assert guard.health.state("up") == "down"
    guard.backend.models = LISTED
    await guard.ticks.tick()
    await guard.ticks.slept_once()
    assert guard.watch.is_reachable("up")
    assert guard.learned == [("up", ("m1", "m2"))]
    await guard.watch.close()
