"""`freshrank plan`: what it refuses, what it promises, what it says gives way, and what its figures rest on."""

import json
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from freshrank.plan import plan
from freshrank.plan_costs import packaged_costs
from freshrank.plan_lines import lines_of
from freshrank.plan_load import Load
from freshrank.plan_parts import joiners_of, partitions_of, per_slate_size
from freshrank.plan_ranks import around, most_rows_per_s, speed
from freshrank.plan_rows import MAX_PAYLOAD_BYTES, distinct, rows_of
from freshrank.plan_solve import NotReachableError, plan_for

COSTS = packaged_costs()
SMALL: dict[str, Any] = {"events_per_s": 1_000, "items": 100_000, "users": 100_000, "qps": 45, "freshness_s": 2}
HUGE: dict[str, Any] = {"events_per_s": 10**6, "items": 10**6, "users": 10**7, "qps": 45_000, "hot_rows": 2 * 10**6}


def arguments(**given: Any) -> list[str]:
    options = SMALL | given
    return [part for name, value in options.items() for part in ("--" + name.replace("_", "-"), str(value))]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"events_per_s": 0}, "--events-per-s: 0 is not allowed; above 0"),
        ({"events_per_s": -5}, "--events-per-s: -5 is not allowed; above 0"),
        ({"qps": "inf"}, "--qps: inf is not allowed; above 0"),
        ({"qps": "nan"}, "--qps: nan is not allowed; above 0"),
        ({"items": 0}, "--items: 0 is not allowed; at least 1"),
        ({"users": -1}, "--users: -1 is not allowed; at least 1"),
        ({"freshness_s": 0}, "--freshness-s: 0 is not allowed; above 0"),
        ({"candidates": 10}, "--candidates: 10 is not allowed; at least the slate, 20"),
        ({"utilisation": 1}, "--utilisation: 1 is not allowed; from 0.05 to 0.95"),
        ({"ranker_utilisation": 0.01}, "--ranker-utilisation: 0.01 is not allowed; from 0.05 to 0.95"),
        ({"judged_share": 0}, "--judged-share: 0 is not allowed; above 0, at most 1"),
        ({"full_every": 0}, "--full-every: 0 is not allowed; at least 1"),
        ({"hot_rows": 0}, "--hot-rows: 0 is not allowed; at least 1"),
        ({"retention_days": 0}, "--retention-days: 0 is not allowed; above 0"),
        ({"actions_per_item": -1}, "--actions-per-item: -1 is not allowed; at least 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(given: dict[str, Any], says: str) -> None:
    result = CliRunner().invoke(plan, arguments(**given))
    assert result.exit_code == 1 and result.output == f"Error: {says}\n"


def test_a_freshness_below_the_commit_interval_says_what_the_least_is_and_why() -> None:
    result = CliRunner().invoke(plan, arguments(freshness_s=0.05))
    assert result.exit_code == 1 and result.output.count("\n") == 1
    assert "--freshness-s: 0.05 cannot be reached: the least is 0." in result.output
    assert "a commit every 100 ms the stages take on average joined 0.06, trained" in result.output


def test_what_is_promised_is_the_least_that_the_refusal_names() -> None:
    with pytest.raises(NotReachableError) as refused:
        plan_for(Load(**SMALL | {"freshness_s": 0.05}), COSTS)
    least_s = float(str(refused.value).partition("the least is ")[2].partition(" s")[0])
    found = plan_for(Load(**SMALL | {"freshness_s": 1.05 * least_s}), COSTS)
    assert found.freshness is not None and found.freshness.p99 <= 1_050 * least_s


def test_the_text_names_a_source_for_every_figure() -> None:
    result = CliRunner().invoke(plan, arguments())
    assert result.exit_code == 0
    head, _, notes = result.output.partition("\nrests on:\n")
    named = {f"[{number}]" for number in range(1, notes.count("\n") + 1)}
    assert all(note in notes for note in named)
    assert "fresh within" in head and "with failures: p99" in head and "trainer ranks" in head
    assert "python -m benchmarks.rank_http (latest.json, P7, CPU of the server per request)" in notes
    assert "ASSUMED: 10 Gbit/s per host" in notes


def test_the_json_holds_the_promise_the_settings_and_the_costs() -> None:
    found = json.loads(CliRunner().invoke(plan, [*arguments(), "--json"]).output)
    assert found["keeps_promise"] and not found["not_built"]
    assert found["freshness_ms"]["p99"] <= 2_000 <= found["with_failures"]["effects"][1]["longest_ms"]
    assert {name for line in found["lines"] for name in line["rests_on"]} <= set(found["costs"])
    assert found["settings"]["kafka.num_partitions"] % found["lines"][0]["value"] == 0
    assert json.loads(CliRunner().invoke(plan, [*arguments(), "--json"]).output) == found


def test_a_million_events_a_second_are_not_promised_and_the_lead_gives_way_first() -> None:
    found = plan_for(Load(**HUGE, freshness_s=10), COSTS)
    assert found.freshness is None and found.limits[0].gives_way
    assert found.limits[0].what.startswith("one training job")
    assert "NOT REACHABLE as built" in CliRunner().invoke(plan, arguments(**HUGE, freshness_s=10)).output


def test_what_if_is_marked_as_not_built() -> None:
    output = CliRunner().invoke(plan, arguments(ranker_cores=4)).output
    assert "WHAT IF" in output and "not built" in output


def test_a_model_beyond_one_value_of_redis_keeps_as_many_rows_hot_as_fit() -> None:
    rows = rows_of(Load(**SMALL | {"users": 10**8}), COSTS, 1.0)
    assert rows.full_bytes <= MAX_PAYLOAD_BYTES < rows.full_bytes + 100
    assert rows.hot < rows.total == 10**8 + 200_000


@pytest.mark.parametrize("name", ["events_per_s", "qps", "users"])
def test_more_of_anything_never_needs_less(name: str) -> None:
    before = {line.what: line.value for line in lines_of(plan_for(Load(**SMALL), COSTS), COSTS)}
    after = {
        line.what: line.value for line in lines_of(plan_for(Load(**SMALL | {name: 4 * SMALL[name]}), COSTS), COSTS)
    }
    counted = ("partitions", "joiners", "rankers", "trainer ranks", "Kafka: written", "Redis: sequences")
    assert all(after[what] >= before[what] for what in counted)
    assert any(after[what] > before[what] for what in after)


def test_partitions_are_shared_evenly_by_the_ranks() -> None:
    for ranks in (1, 3, 7):
        partitions = partitions_of(Load(**SMALL), COSTS, joiners=4, ranks=ranks)
        assert partitions % ranks == 0 and partitions >= max(8, 2 * ranks)


def test_a_long_window_is_spilled_and_costs_more() -> None:
    short, long = (joiners_of(Load(**SMALL | {"events_per_s": 50_000, "window_s": s}), COSTS) for s in (60, 86_400))
    assert not short.spills and long.spills
    assert long.event_us > short.event_us and long.disk_bytes > 0 == short.disk_bytes


def test_costs_by_slate_are_those_measured_at_one_and_at_twenty_items() -> None:
    assert per_slate_size(COSTS, "joiner.event", 1) == pytest.approx(COSTS["joiner.event_single"])
    assert per_slate_size(COSTS, "joiner.event", 20) == pytest.approx(COSTS["joiner.event_of_20"])


def test_one_rank_has_no_network_and_costs_what_a_whole_trainer_process_was_measured_at() -> None:
    job = speed(COSTS, "small", 1, 512)
    assert job.step.network == 0
    assert 1e6 / job.rows_per_s == pytest.approx(COSTS["trainer.row"]) and around(COSTS) >= 1


def test_more_ranks_are_faster_up_to_the_bound_of_the_lead() -> None:
    rates = [speed(COSTS, "small", size, 131_072).rows_per_s for size in (1, 2, 4, 8, 64)]
    assert rates == sorted(rates)
    assert rates[-1] < most_rows_per_s(COSTS)
    assert most_rows_per_s(COSTS, 0.5) == pytest.approx(2 * most_rows_per_s(COSTS))


def test_small_batches_on_many_ranks_only_wait_for_the_network() -> None:
    assert speed(COSTS, "small", 512, 512).rows_per_s < speed(COSTS, "small", 16, 512).rows_per_s


def test_different_things_of_a_zipf_law_are_those_counted() -> None:
    weights = (1.0 + np.arange(5_000)) ** -0.9
    chance = weights / weights.sum()
    expected = (1 - (1 - chance) ** 3_000).sum()
    assert distinct(5_000, 0.9, 3_000) == pytest.approx(expected, rel=0.01)
