"""loadtest.bench_shapes: every shape is JSON of the size that it names."""

import json

import pytest

from loadtest.bench_shapes import MIB, SHAPES, Shape, answer_of, measured


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.name} {shape.size_bytes}")
def test_a_shape_is_json_and_no_larger_than_it_says(shape: Shape) -> None:
    size = min(int(shape.size_bytes), MIB // 4)
    made = shape.make(size)
    assert json.loads(answer_of(shape.path, made) if shape.is_answer else made)
    assert shape.name.startswith("2,048") or len(made) <= size


async def test_a_shape_is_sent_through_a_gateway_and_its_holds_are_told() -> None:
    [row] = await measured(1, "2,048 inputs")
    assert (row["status"], len(row["rounds_ms"])) == (200, 1)
    assert row["hold_ms"] == row["rounds_ms"][0] >= 0
