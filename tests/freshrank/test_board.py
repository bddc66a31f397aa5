"""What the page shows is made from scrapes alone: rates, curves, restarts, and dashes where nothing is known."""

import pytest

from freshrank.board import Board
from freshrank.scrape import Scrape


def board(history: int = 10) -> Board:
    return Board(["joiner", "trainer", "ranker-1", "ranker-2", "simulator"], ["click"], ["home"], history)


def scrape(**samples: float) -> Scrape:
    return Scrape({(name, ()): value for name, value in samples.items()})


def test_nothing_measured_is_none_and_not_zero() -> None:
    empty = board()
    state = empty.state()
    assert state["freshness"] == {"p50_ms": None, "p99_ms": None, "n": None}
    assert state["model"]["version"] is None
    assert state["quality"]["click"]["home"]["ne"] is None
    assert state["flow"]["examples_per_s"] is None
    assert [process["up"] for process in state["processes"]] == [False] * 5


def test_rate_is_the_slope_of_a_counter_summed_over_processes() -> None:
    shown = board()
    for second in range(4):
        each = scrape(freshrank_ranker_requests_total=50.0 * second)
        shown.observe(1_000 * second, {"ranker-1": each, "ranker-2": each})
    assert shown.state()["flow"]["rankings_per_s"] == pytest.approx(100.0)


def test_counter_that_starts_again_is_no_negative_rate() -> None:
    shown = board()
    for second, count in enumerate([500.0, 900.0, 3.0]):
        shown.observe(1_000 * second, {"trainer": scrape(freshrank_trainer_examples_total=count)})
    assert shown.state()["flow"]["examples_per_s"] == 0.0


def test_worst_of_several_rankers_is_shown() -> None:
    shown = board()
    ages = {"ranker-1": 0.4, "ranker-2": 2.5}
    shown.observe(0, {name: scrape(freshrank_ranker_model_age_seconds=age) for name, age in ages.items()})
    assert shown.state()["model"]["age_ms"] == pytest.approx(2_500)


def test_process_that_came_back_is_counted_as_restarted() -> None:
    shown = board()
    for now_ms, started_s in ((10_000, 5.0), (11_000, 5.0), (12_000, None), (13_000, 12.5)):
        found = (
            None if started_s is None else scrape(process_start_time_seconds=started_s, process_cpu_seconds_total=1.0)
        )
        shown.observe(now_ms, {"trainer": found})
    trainer = shown.state()["processes"][1]
    assert (trainer["restarts"], trainer["up"], trainer["uptime_ms"]) == (1, True, 500.0)


def test_history_is_bounded_and_its_columns_stay_equal() -> None:
    shown = board(history=3)
    for second in range(7):
        shown.observe(1_000 * second, {"joiner": None})
    lengths = {len(column) for column in shown.history().values()}
    assert lengths == {3}
    assert shown.history()["t_ms"] == [4_000, 5_000, 6_000]


def test_history_after_a_moment_is_what_has_come_since() -> None:
    shown = board()
    for second in range(4):
        shown.observe(1_000 * second, {"ranker-1": scrape(freshrank_ranker_model_age_seconds=float(second))})
    newer = shown.history(since_ms=1_000)
    assert (newer["t_ms"], newer["model_age_ms"]) == ([2_000, 3_000], [2_000.0, 3_000.0])
    assert shown.history(since_ms=9_000) == {"t_ms": []}


def test_curve_of_a_scenario_that_comes_later_has_gaps_before() -> None:
    shown = board()
    ne = "freshrank_trainer_normalized_entropy_ratio"
    shown.observe(0, {"trainer": Scrape({(ne, ("home", "click")): 0.9})})
    both = {(ne, ("home", "click")): 0.8, (ne, ("zoo", "click")): 1.1}
    shown.observe(1_000, {"trainer": Scrape(both | {("freshrank_trainer_window_rows", ("zoo", "click")): 1.0})})
    history = shown.history()
    assert (history["ne.click.home"], history["ne.click.zoo"]) == ([0.9, 0.8], [None, 1.1])


def test_curve_of_a_process_that_does_not_answer_has_a_gap_while_the_figure_stays() -> None:
    shown = board()
    for second, lag in enumerate((0.5, None, 0.7)):
        found = None if lag is None else scrape(freshrank_trainer_watermark_age_seconds=lag)
        shown.observe(1_000 * second, {"trainer": found})
        assert shown.state()["lag"]["trainer_ms"] == (500.0 if second < 2 else 700.0)
    assert shown.history()["trainer_lag_ms"] == [500.0, None, 700.0]


def test_gates_attention_and_weights_are_shown_by_name() -> None:
    trainer = {
        ("freshrank_trainer_scenario_attention_ratio", ("zoo", "home")): 1.0,
        ("freshrank_trainer_gate_ratio", ("click.0", "cgc", "home", "click")): 0.3,
        ("freshrank_trainer_gate_ratio", ("shared.0", "cgc", "home", "click")): 0.7,
    }
    ranker = {("freshrank_ranker_blender_weight_ratio", ("home", "click")): 2.5}
    shown = board()
    shown.observe(0, {"trainer": Scrape(trainer), "ranker-1": Scrape(ranker), "ranker-2": Scrape(ranker)})
    state = shown.state()
    assert state["attention"] == {"home": {"zoo": 1.0}}
    head = {"scenario": "home", "task": "click", "mean": {"click.0": 0.3, "shared.0": 0.7}}
    assert state["gates"] == [{"gate": "cgc", "heads": [head]}]
    assert state["weights"] == {"home": {"click": 2.5}}
    assert shown.history()["weight.home.click"] == [2.5]


def test_lag_and_what_was_served_are_shown() -> None:
    age = "freshrank_joiner_watermark_age_seconds"
    online = {
        ("freshrank_agents_online_ctr_ratio", ("home", "click")): 0.1,
        ("freshrank_agents_online_calibration_ratio", ("current", "home", "click")): 1.2,
        ("freshrank_agents_drift_alarms_total", ("home", "click")): 2.0,
    }
    shown = board()
    assert (shown.state()["online"], shown.state()["lag"]["worst_joiner_ms"]) == ([], None)
    shown.observe(0, {"joiner": Scrape({(age, ("1",)): 3.0, (age, ("0",)): 0.5}), "simulator": Scrape(online)})
    lag = shown.state()["lag"]
    assert (lag["joiner_ms"], lag["worst_joiner_ms"], lag["trainer_ms"]) == ({"0": 500.0, "1": 3_000.0}, 3_000.0, None)
    assert shown.state()["online"] == [
        {
            "scenario": "home", "task": "click", "auc": None, "ctr": 0.1,
            "calibration": {"current": 1.2, "previous": None}, "drift": 2.0,
        }
    ]  # fmt: skip


def test_scrape_reads_labels_by_name_and_drops_what_is_not_a_number() -> None:
    text = (
        "# TYPE freshrank_trainer_auc_ratio gauge\n"
        'freshrank_trainer_auc_ratio{task="click",scenario="home"} 0.75\n'
        'freshrank_trainer_auc_ratio{task="click",scenario="all"} NaN\n'
    )
    shown = board()
    shown.observe(0, {"trainer": Scrape.parse(text)})
    assert shown.state()["quality"]["click"]["home"]["auc"] == 0.75
    assert shown.state()["quality"]["click"]["all"]["auc"] is None


def test_scenario_that_the_trainer_has_added_is_shown_after_the_listed_ones() -> None:
    rows = {("all", "click"): 900.0, ("home", "click"): 500.0, ("zoo", "click"): 300.0, ("events", "click"): 100.0}
    shown = board()
    assert shown.state()["schema"] == {"tasks": ["click"], "scenarios": ["home"], "added": []}
    shown.observe(0, {"trainer": Scrape({("freshrank_trainer_window_rows", key): n for key, n in rows.items()})})
    state = shown.state()
    assert state["schema"] == {"tasks": ["click"], "scenarios": ["home", "zoo", "events"], "added": ["zoo", "events"]}
    assert {name: figures["n"] for name, figures in state["quality"]["click"].items()} == {
        "all": 900.0, "home": 500.0, "zoo": 300.0, "events": 100.0,
    }  # fmt: skip
    shown.observe(1_000, {"trainer": None})
    assert shown.state()["schema"]["added"] == ["zoo", "events"]


def test_worst_churn_of_several_rankers_is_shown() -> None:
    shown = board()
    name = "freshrank_ranker_churn_ratio"
    churn = {"ranker-1": (0.1, 0.95), "ranker-2": (0.4, 0.7)}
    shown.observe(
        0,
        {
            ranker: Scrape({(name, ("top1_changed",)): changed, (name, ("rbo",)): rbo})
            for ranker, (changed, rbo) in churn.items()
        },
    )
    assert (shown.state()["model"]["top1_changed"], shown.state()["model"]["rbo"]) == (0.4, 0.7)


def test_what_gate_and_blender_say_is_shown_and_dashes_before() -> None:
    shown = board()
    assert set(shown.state()["gate"].values()) == set(shown.state()["blender"].values()) == {None}
    state, lift = "freshrank_trainer_gate_state_ratio", "freshrank_blender_lift_ratio"
    trainer = {(state, ("pass",)): 0.0, (state, ("block",)): 1.0}
    trainer[("freshrank_trainer_publish_failures_total", ("rejected",))] = 3.0
    ranker = {("freshrank_ranker_blender_version", ()): 2.0, ("freshrank_ranker_blender_share_ratio", ()): 0.1}
    blender = {(lift, ("estimate",)): 0.02, (lift, ("lower",)): 0.01}
    shown.observe(0, {"trainer": Scrape(trainer), "ranker-1": Scrape(ranker), "joiner": Scrape(blender)})
    gate, weights = shown.state()["gate"], shown.state()["blender"]
    assert (gate["state"], gate["rejected"]) == ("block", 3.0)
    assert (weights["version"], weights["share"], weights["lift"], weights["lift_low"]) == (2.0, 0.1, 0.02, 0.01)
