"""Whose rows a step has: answers before prompts, and nobody waits for a lower lane. Torch-free.

A step is computed in tiles of a fixed number of rows; what a tile has left over costs nothing. The *first
lane* is that of the first sequence whose prompt is not computed yet.

    answers of the first lane and of higher ones    a row each, and guesses
    prompts of the first lane                       what is left of the tiles, see `prompt_rows`
    answers, then prompts, of lower lanes           what would be padding otherwise

So a batch or warm request costs an interactive one the step in which it arrives, one tile of prompt at
most, and nothing after that. While interactive prompts keep coming, the lower lanes get the padding: that
they may starve is what lanes are for. An answer waits for prompts of its own lane, but the rows of a step
are bounded (Sarathi-Serve), so that it goes on at a pace.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

from engine.request import LANES, Sequence
from engine.spans import Schedule, Span, decode_spans, prefill_spans


def prompt_rows(answer_rows: int, *, tile: int, idle_tiles: int, interactive: bool) -> int:
    """Rows for prompts of the first lane beside so many for answers.

    With answers the rest of their last tile, or one tile beyond it where that is less than half of one,
    but never more than twice their own rows then; without, `idle_tiles`. Where the first lane is a lower
    one the step stays within a tile if it can: somebody may come who is not to wait for more.
    """
    rest = -answer_rows % tile
    if not interactive:
        return max(rest, tile // 8) if answer_rows else tile
    if not answer_rows:
        return tile * idle_tiles
    return rest if 2 * rest >= tile else min(rest + tile, max(rest, 2 * answer_rows))


def choose(
    running: Seq[Sequence],
    *,
    tile: int,
    idle_tiles: int,
    draft: Callable[[list[Sequence]], None],
) -> Schedule:
    """The rows of the next step. `running` is sorted by rank; `draft` adds guesses to sequences."""
    answering = [one for one in running if one.computed >= one.prefill_stop]
    prompts = [one for one in running if one.computed < one.prefill_stop]
    first = prompts[0].rank[0] if prompts else len(LANES)
    ahead = [one for one in answering if one.rank[0] <= first]
    draft(ahead)
    answers = [span for one in ahead for span in decode_spans(one)]
    room = prompt_rows(len(answers), tile=tile, idle_tiles=idle_tiles, interactive=first == 0)
    computable = [one for one in prompts if one.fetch is None]
    computed = _prompts([one for one in computable if one.rank[0] == first], room)

    padding = -(len(answers) + sum(span.rows for span in computed)) % tile
    behind = [span for one in answering if one.rank[0] > first for span in decode_spans(one)]
    behind = behind[:padding]
    computed += _prompts([one for one in computable if one.rank[0] > first], padding - len(behind))
    return Schedule((*answers, *behind, *computed))


def _prompts(sequences: Seq[Sequence], room: int) -> list[Span]:
    """The next rows of these prompts, in order, as many as there is room for."""
    spans: list[Span] = []
    for one in sequences:
        rows = min(room, one.prefill_stop - one.computed)
        if rows:
            spans.extend(prefill_spans(one, rows))
            room -= rows
    return spans
