# SPDX-License-Identifier: Apache-2.0
"""What the endurance programs share: counts, files, repeats, and the table made from them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from endurance import record, table


def numbers(place, randoms):
    """A case that is right, refused or lost by its random number."""
    place.append(value := randoms.random())
    if value < 0.2:
        raise record.Refused
    assert value < 0.8, f"{record.ROOT}/x: {value:.1f}"
    return {"largest": value}


def part(seen: list, batch: int = 1) -> record.Part:
    kind = record.Kind("draws", "numbers", 20, record.one_by_one(numbers), batch=batch)
    return record.Part("draws", "Draws", [kind], lambda: contextlib.nullcontext(seen))


def run(seen: list, out: Path, batch: int = 1, **options):
    given = {"seed": 3, "scale": 1.0, **options}
    return record.run_part(part(seen, batch), out, **given)["kinds"][0]


@pytest.mark.parametrize("batch", [1, 6])
def test_counts_add_up_and_lost_cases_can_be_repeated(tmp_path, capsys, batch):
    seen: list[float] = []
    row = run(seen, tmp_path, batch=batch)
    assert (len(seen), row["tried"], row["goal"]) == (20, 20, 20)
    assert row["refused"] == sum(value < 0.2 for value in seen) > 0
    assert row["lost"] == sum(value >= 0.8 for value in seen) > 0
    assert row["done"] == 20 - row["refused"] - row["lost"]
    assert row["measured"]["largest"] == max(value for value in seen if value < 0.8)
    assert f"{row['lost']} LOST" in capsys.readouterr().out
    for failure in row["failures"]:
        again: list[float] = []
        found = record.run_case(part(again), "draws", failure["number"], seed=3)
        assert again == [seen[failure["number"]]]
        assert found.failures[0].why == failure["why"]
        assert failure["why"].startswith("AssertionError: ./x: ")
        assert failure["repeat"].endswith(f"--kind 'draws' --seed 3 --case {failure['number']}")


def test_it_goes_on_where_it_was_stopped(tmp_path):
    whole: list[float] = []
    expected = run(whole, tmp_path / "a")
    halves: list[float] = []
    run(halves, tmp_path / "b", scale=0.5)
    assert len(halves) == 10
    row = run(halves, tmp_path / "b", resume=True)
    assert halves == whole
    for key in ("tried", "done", "refused", "lost", "measured", "failures"):
        assert row[key] == expected[key]
    run(halves, tmp_path / "b", resume=True, seed=4)  # other cases: from the beginning
    assert len(halves) == 40


def test_what_a_program_does_not_expect_is_a_loss(tmp_path):
    def broken(place, batch):
        if batch.first == 2:
            raise KeyError("unexpected")
        return record.Outcome(done=batch.count)

    kind = record.Kind("b", "cases", 6, broken, batch=2)
    row = record.run_part(record.Part("p", "P", [kind]), tmp_path, seed=1, scale=1.0)["kinds"][0]
    assert (row["done"], row["lost"]) == (5, 1)
    assert "unexpected" in row["failures"][0]["why"]


def test_every_batch_is_written(tmp_path):
    def interrupted(place, batch):
        if batch.first == 3:
            raise KeyboardInterrupt
        return record.Outcome(done=1)

    kind = record.Kind("b", "cases", 6, interrupted)
    with pytest.raises(KeyboardInterrupt):
        record.run_part(record.Part("p", "P", [kind]), tmp_path, seed=1, scale=1.0)
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["kinds"][0]["tried"] == 3


def test_the_table_shows_the_newest_row_of_each_kind(tmp_path):
    run([], tmp_path)
    (path,) = tmp_path.iterdir()
    older = json.loads(path.read_text())
    older["kinds"][0] |= {"tried": 5, "lost": 5}
    older["kinds"].append({**older["kinds"][0], "name": "of old"})
    (tmp_path / "2020-01-01-draws.json").write_text(json.dumps(older))
    text = table.markdown(tmp_path)
    assert "| numbers: draws | 20 | 20 |" in text
    assert "| numbers: of old | 5 | 20 |" in text
    assert "**5**" in text
    assert "1 of 2 kinds have not reached the count of a full run" in text


def test_the_page_shows_what_is_stored():
    assert table.shown(table.PAGE.read_text(encoding="utf-8")) == table.markdown()
