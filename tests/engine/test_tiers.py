"""What leaves the pool comes back from below, exact or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine.kv.costs import FIRST_PAUSE_S, LOSSES_UNTIL_OFF
from engine.kv.disk import RECORD_BYTES
from engine.kv.tiers import LANDED_A_STEP
from engine.scheduler import Schedule
from tests.kit.scripted_runner import solo
from tests.kit.tiered import Tiered

PROMPT = list(range(1, 18))  # four whole blocks of four, and one token


@pytest.fixture(params=["cold", "warm", "both"])
def tiered(request: pytest.FixtureRequest, tmp_path: Path) -> Tiered:
    if request.param == "warm":
        return Tiered(None, warm_blocks=16)
    return Tiered(tmp_path, warm_blocks=2 if request.param == "both" else 0)


def test_what_was_evicted_comes_back_and_is_not_computed_again(tiered: Tiered) -> None:
    answer, first = tiered.ask(PROMPT, max_tokens=3)
    assert answer == solo(PROMPT, 3)
    assert first.tier_tokens == {"hot": 0}
    tiered.push_out()
    assert tiered.index.lookup(PROMPT, "") == 0
    before = tiered.runner.rows_computed
    answer, again = tiered.ask(PROMPT, max_tokens=3)
    assert answer == solo(PROMPT, 3)
    assert again.hit_tokens == 16
    assert sum(again.tier_tokens.values()) == 16
    assert again.tier_tokens["hot"] == 0
    assert again.moved_bytes == 4 * tiered.store.block_bytes
    assert (
        tiered.runner.rows_computed - before == 1 + 2
    )  # the prompt's last token, two of the answer
    assert tiered.index.lookup(PROMPT, "") == 16


def test_a_restart_finds_on_disk_what_the_process_before_had_written(tmp_path: Path) -> None:
    before = Tiered(tmp_path)
    before.ask(PROMPT, max_tokens=3)
    before.push_out()
    before.close()
    after = Tiered(tmp_path)
    answer, sequence = after.ask(PROMPT, max_tokens=3)
    assert answer == solo(PROMPT, 3)
    assert sequence.tier_tokens == {"hot": 0, "cold": 16}


def test_another_salt_finds_nothing(tiered: Tiered) -> None:
    tiered.ask(PROMPT, salt="a")
    tiered.push_out()
    _, sequence = tiered.ask(PROMPT, salt="b")
    assert sequence.hit_tokens == 0


def test_what_is_invalidated_does_not_come_back(tmp_path: Path) -> None:
    tiered = Tiered(tmp_path, warm_blocks=2)
    tiered.ask(PROMPT, salt="a")
    tiered.ask(PROMPT, salt="b")
    tiered.push_out()
    assert tiered.index.invalidate("a") == 16
    assert tiered.ask(PROMPT, salt="a")[1].hit_tokens == 0
    tiered.push_out(seed=8)
    assert tiered.index.invalidate("a") == 16
    tiered.close()
    after = Tiered(tmp_path)
    assert after.ask(PROMPT, salt="a")[1].hit_tokens == 0
    assert after.ask(PROMPT, salt="b")[1].hit_tokens > 0


def test_another_model_begins_anew(tmp_path: Path) -> None:
    before = Tiered(tmp_path)
    before.ask(PROMPT)
    before.push_out()
    before.close()
    after = Tiered(tmp_path, fingerprint=b"x" * 32)
    assert after.ask(PROMPT)[1].hit_tokens == 0


def test_every_flipped_byte_of_the_files_is_an_exact_hit_or_a_miss(tmp_path: Path) -> None:
    prompt = PROMPT[:9]
    before = Tiered(tmp_path / "whole", cold_blocks=3)
    before.ask(prompt, max_tokens=3)
    before.push_out()
    assert before.cold is not None
    slot, header = before.cold.file.geometry.slot_bytes, before.cold.file.geometry.header_bytes
    used = header + before.store.block_bytes
    before.close()
    places = [("index", at) for at in range(RECORD_BYTES * 3)]
    places += [("blocks", number * slot + at) for number in range(2) for at in range(used)]
    hits = {0: 0, 4: 0, 8: 0}
    for name, at in places:
        shutil.rmtree(tmp_path / "flipped", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "flipped")
        file = tmp_path / "flipped" / "0" / name
        data = bytearray(file.read_bytes())
        data[at] ^= 1 << (at % 8)
        file.write_bytes(data)
        after = Tiered(tmp_path / "flipped", cold_blocks=3)
        answer, sequence = after.ask(prompt, max_tokens=3)
        assert answer == solo(prompt, 3), (name, at)
        hits[sequence.hit_tokens] += 1
        after.close()
    one = RECORD_BYTES + used  # its record, its header, its payload
    assert hits == {0: RECORD_BYTES + one, 4: one, 8: 0}, "head and first; second; nothing else"


def test_while_one_waits_for_its_reads_the_others_go_on(tmp_path: Path) -> None:
    tiered = Tiered(tmp_path, blocks=16)
    tiered.ask(PROMPT)
    tiered.push_out()
    tiered.push_out(seed=8)
    tiered.reads.at_once = False
    talker = tiered.add([500, 501], max_tokens=20)
    reader = tiered.add(PROMPT, max_tokens=2)
    tokens = []
    for _ in range(10):
        tokens += [event.request_id for event in tiered.engine.step()]
        tiered.check()
    assert tokens == [talker.id] * 10
    assert not reader.blocks
    assert not tiered.scheduler.stalled
    tiered.reads.do()
    events = tiered.engine.step()
    assert [event.request_id for event in events] == [talker.id, reader.id], "at once, then"
    assert reader.tier_tokens == {"hot": 0, "cold": 16}
    tiered.run()


def test_an_engine_in_which_all_wait_for_reads_is_stalled_and_not_busy_looping(
    tmp_path: Path,
) -> None:
    tiered = Tiered(tmp_path)
    tiered.ask(PROMPT)
    tiered.push_out()
    tiered.reads.at_once = False
    tiered.add(PROMPT)
    assert tiered.scheduler.stalled
    assert tiered.engine.step() == []
    woken: list[bool] = []
    tiered.tiers.notify(lambda: woken.append(tiered.scheduler.stalled))
    tiered.reads.do()
    assert woken == [True] * 3 + [False]
    tiered.run()


def test_only_a_few_blocks_land_between_two_steps_of_others(tmp_path: Path) -> None:
    blocks = 3 * LANDED_A_STEP
    prompt = list(range(1, 4 * blocks + 2))
    tiered = Tiered(tmp_path, blocks=blocks + 20, cold_blocks=200, queue_blocks=200)
    tiered.ask(prompt)
    tiered.push_out()
    tiered.ask([900] * 4)
    talker = tiered.add([500, 501], max_tokens=12)
    tiered.engine.step()
    reader = tiered.add(prompt)
    landed = []
    while tiered.scheduler.busy:
        heard = [event.request_id for event in tiered.engine.step()]
        assert talker.id in heard or talker.generated == 12, "nobody waits for the copies"
        landed.append(len(tiered.store.imported))
        tiered.check()
    assert landed[:3] == [LANDED_A_STEP, 2 * LANDED_A_STEP, 3 * LANDED_A_STEP]
    assert reader.tier_tokens == {"hot": 0, "cold": 4 * blocks}


def test_two_with_the_same_beginning_read_it_once(tmp_path: Path) -> None:
    tiered = Tiered(tmp_path, blocks=16)
    tiered.ask(PROMPT)
    tiered.push_out()
    tiered.push_out(seed=8)
    one, two = tiered.add(PROMPT, max_tokens=2), tiered.add(PROMPT, max_tokens=2)
    tiered.run()
    assert tiered.cold is not None
    assert tiered.cold.counts.reads == 4
    assert one.hit_tokens == two.hit_tokens == 16
    assert len(tiered.store.imported) == 4


@pytest.mark.parametrize("when", ["read", "arrived", "landing"])
def test_who_is_aborted_leaves_nothing_behind(tmp_path: Path, when: str) -> None:
    tiered = Tiered(tmp_path, blocks=24)
    tiered.ask(PROMPT)
    tiered.push_out()
    tiered.push_out(seed=8)
    tiered.reads.at_once = False
    sequence = tiered.add(PROMPT)
    if when != "read":
        tiered.reads.do()
    if when == "landing":
        tiered.scheduler.schedule(now=0.0)
    tiered.scheduler.abort(sequence.id, now=0.0)
    tiered.reads.do()
    tiered.tiers.begin_step(now=0.0)
    assert tiered.cold is not None
    assert all(item.readers == 0 for item in tiered.cold.shelf)
    assert sequence.fetch is None
    tiered.reads.at_once = True
    assert tiered.ask(PROMPT)[1].hit_tokens == 16


def test_what_is_invalidated_between_reading_and_landing_is_computed(tmp_path: Path) -> None:
    tiered = Tiered(tmp_path)
    tiered.ask(PROMPT)
    tiered.push_out()
    tiered.reads.at_once = False
    sequence = tiered.add(PROMPT, max_tokens=2)
    tiered.reads.do()
    tiered.index.invalidate("")
    tiered.run()
    assert sequence.hit_tokens == 0
    assert sequence.tier_tokens == {"hot": 0}
    assert tiered.store.imported == []


def test_a_prompts_end_is_forgotten_below_the_pool_too(tmp_path: Path) -> None:
    tiered = Tiered(tmp_path)
    tiered.ask(PROMPT)
    tiered.push_out()
    assert tiered.index.invalidate_from(PROMPT, "", from_token=9) == 8
    assert tiered.ask(PROMPT)[1].hit_tokens == 8


def test_a_disk_that_cannot_be_told_still_empties_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiered = Tiered(tmp_path)
    tiered.ask(PROMPT)
    tiered.settle()

    def broken(slot: int) -> None:
        raise OSError(5, "Input/output error")

    assert tiered.cold is not None
    monkeypatch.setattr(tiered.cold.file, "clear", broken)
    with pytest.raises(OSError, match="Input/output error"):
        tiered.index.invalidate("")
    assert tiered.index.lookup(PROMPT, "") == 0
    assert tiered.ask(PROMPT)[1].hit_tokens == 0


class Priced:
    """Computing a row and reading a block take as long as the test says."""

    def __init__(self, folder: Path, *, row_s: float, block_s: float) -> None:
        self.tiered = Tiered(folder)
        self.row_s, self.block_s = row_s, block_s
        self.tiered.runner.before_step = self._computes
        assert self.tiered.cold is not None
        self._really = self.tiered.cold.file.read
        self.tiered.cold.file.read = self._reads  # type: ignore[method-assign]  # takes its time
        self.seed = 0

    def _computes(self, schedule: Schedule) -> None:
        self.tiered.clock.advance(self.row_s * schedule.rows)

    def _reads(self, slot: int, payload: bytearray) -> bytes:
        self.tiered.clock.advance(self.block_s)
        return self._really(slot, payload)

    def once(self) -> int:
        """How many tokens came from disk, with nothing of it in the pool before."""
        self.seed += 1
        self.tiered.push_out(seed=self.seed)
        self.tiered.settle()
        _, sequence = self.tiered.ask(PROMPT)
        return int(sequence.tier_tokens.get("cold", 0))

    def stats(self) -> dict[str, object]:
        cold: dict[str, object] = self.tiered.tiers.stats(now=self.tiered.clock.monotonic())["cold"]
        return cold


def test_what_is_cheaper_to_read_is_read(tmp_path: Path) -> None:
    priced = Priced(tmp_path, row_s=0.01, block_s=0.02)
    priced.tiered.ask(PROMPT)
    assert [priced.once() for _ in range(20)] == [16] * 20
    assert priced.stats()["on"] is True
    assert priced.stats()["read_latency_ms"] == pytest.approx(20.0)
    assert priced.tiered.tiers.stats(now=0.0)["prefill_tokens_per_s"] == pytest.approx(100.0)


def test_a_disk_slower_than_computing_switches_itself_off_and_comes_back_when_it_is_faster(
    tmp_path: Path,
) -> None:
    priced = Priced(tmp_path, row_s=0.01, block_s=0.2)
    priced.tiered.ask(PROMPT)
    tokens = [priced.once() for _ in range(LOSSES_UNTIL_OFF)]
    assert tokens[0] == 16, "nobody knew"
    assert tokens[1:] == [0] * (LOSSES_UNTIL_OFF - 1), "one look was enough"
    assert priced.stats()["on"] is False
    assert priced.stats()["declined"] == 4 * (LOSSES_UNTIL_OFF - 1)
    priced.block_s = 0.001
    assert priced.once() == 0, "off is off"
    priced.tiered.clock.advance(FIRST_PAUSE_S)
    assert priced.once() == 16, "to find out"
    assert priced.stats()["on"] is True
    assert priced.once() == 16


def test_what_was_still_in_memory_says_nothing_of_the_disk(tmp_path: Path) -> None:
    priced = Priced(tmp_path, row_s=0.01, block_s=9.0)
    priced.tiered.writes.at_once = False
    priced.tiered.ask(PROMPT)
    priced.tiered.push_out()
    _, sequence = priced.tiered.ask(PROMPT)
    assert sequence.tier_tokens == {"hot": 0, "cold": 16}
    assert priced.stats()["read_latency_ms"] is None


def test_closing_writes_what_is_worth_it_within_its_time(tmp_path: Path) -> None:
    for until, kept in ((1.0, 16), (0.0, 0)):
        tiered = Tiered(tmp_path / str(until))
        tiered.ask(PROMPT)
        tiered.tiers.close(now=0.0, until=until)
        after = Tiered(tmp_path / str(until))
        assert after.ask(PROMPT)[1].hit_tokens == kept
        after.close()


def test_where_blocks_are_can_be_asked(tmp_path: Path) -> None:
    tiered = Tiered(tmp_path, warm_blocks=2)
    tiered.ask(PROMPT)
    tiered.push_out()
    chain = tiered.index.chain(PROMPT, "")
    assert tiered.tiers.lookup(chain, now=0.0) == ["warm", "warm", "cold", "cold"]
    assert tiered.tiers.lookup([b"x" * 32, *chain], now=0.0) == []
    assert repr(tiered.tiers).startswith("Tiers(warm: Shelf(2 of 2 blocks), cold: ")
