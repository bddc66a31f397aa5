"""The drill of killed ranks in its short form: `make ranks-drill` does the long one."""

from pathlib import Path

from tests.drills.ranks import drill


def test_two_kills_change_no_bit_and_count_nothing_twice(tmp_path: Path) -> None:
    figures = drill(tmp_path, num_ranks=2, num_kills=2, num_messages=15, seed=4)
    assert figures["problems"] == []
    assert figures["restarts"] == figures["kills"] == 2
    assert {kill["rank"] for kill in figures["each"]} == {0, 1} and figures["training_again_s"]["max"] < float("inf")
