"""What each panel of the live page shows, from the figures of one moment. Pure; None is not measured."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from freshrank.scrape import Figures, Labels
from model.gate_report import State

JOINER = "freshrank_joiner_"
Numbers = dict[str, float | None]


def freshness(figures: Figures) -> Numbers:
    """Returns how long an action took to be served, and over how many actions that is."""
    quantile = "freshrank_ranker_freshness_quantile_seconds"
    return {
        "p50_ms": ms(figures.worst(quantile, "0.5")),
        "p99_ms": ms(figures.worst(quantile, "0.99")),
        "n": figures.number("freshrank_ranker_freshness_seconds_count"),
    }


def model(figures: Figures) -> Numbers:
    """Returns what serves, how old it is and how it differs from the version before."""
    return {
        "version": figures.worst("freshrank_ranker_version"),
        "age_ms": ms(figures.worst("freshrank_ranker_model_age_seconds")),
        "top1_changed": figures.worst("freshrank_ranker_churn_ratio", "top1_changed"),
        "rbo": figures.least("freshrank_ranker_churn_ratio", "rbo"),
        "steps": figures.number("freshrank_trainer_steps_total"),
        "snapshots": figures.total("freshrank_trainer_snapshots_total"),
        "published": figures.number("freshrank_trainer_version"),
        "released": figures.number("freshrank_trainer_released_version"),
    }


def gate(figures: Figures) -> dict[str, float | str | None]:
    """Returns what the publish gate says now; `state` is one of its states, None without a trainer."""
    name = "freshrank_trainer_gate_state_ratio"
    return {
        "state": next((state for state in get_args(State) if figures.number(name, state) == 1), None),
        "rejected": figures.number("freshrank_trainer_publish_failures_total", "rejected"),
        "frozen": figures.number("freshrank_trainer_gate_frozen_ratio"),
        "holding": figures.number("freshrank_trainer_gate_holding_ratio"),
    }


def blender(figures: Figures) -> dict[str, Any]:
    """Returns which weights serve, whether requests explore, and what the last candidate promised."""
    return {
        "version": figures.worst("freshrank_ranker_blender_version"),
        "share": figures.worst("freshrank_ranker_blender_share_ratio"),
        "exploring": figures.worst("freshrank_ranker_exploring_ratio"),
        "round_requests": figures.number("freshrank_blender_round_requests"),
        "round_missing": figures.number("freshrank_blender_round_missing_requests"),
        "lift": figures.number("freshrank_blender_lift_ratio", "estimate"),
        "lift_low": figures.number("freshrank_blender_lift_ratio", "lower"),
    }


def weights(figures: Figures) -> dict[str, dict[str, float]]:
    """Returns by scenario the weights of its last ranking by task; those of the first of several rankers."""
    return _nested(figures.of("freshrank_ranker_blender_weight_ratio"))


def quality(figures: Figures, tasks: Sequence[str], scenarios: Sequence[str]) -> dict[str, dict[str, Numbers]]:
    """Returns the figures of progressive validation by task and scenario; scenario `all` is all of them."""

    def cell(task: str, scenario: str) -> Numbers:
        labels = (scenario, task)  # by the labels' names: scenario, task
        return {
            "n": figures.number("freshrank_trainer_window_rows", *labels),
            "positives": figures.number("freshrank_trainer_window_positives", *labels),
            "ne": figures.number("freshrank_trainer_normalized_entropy_ratio", *labels),
            "auc": figures.number("freshrank_trainer_auc_ratio", *labels),
            "calibration": figures.number("freshrank_trainer_calibration_ratio", *labels),
        }

    return {task: {name: cell(task, name) for name in ("all", *scenarios)} for task in tasks}


def added(figures: Figures, scenarios: Sequence[str]) -> list[str]:
    """Returns the scenarios that the trainer reports beside the listed ones, in its order."""
    reported = (labels[0] for labels, _ in figures.of("freshrank_trainer_window_rows"))
    return [name for name in dict.fromkeys(reported) if name not in ("all", *scenarios)]


def lift(figures: Figures) -> Numbers:
    """Returns how good the served rankings truly are."""
    utility = {name: figures.number("freshrank_simulator_utility_ratio", name) for name in ("served", "random")}
    return utility | {
        "oracle": figures.number("freshrank_simulator_utility_ratio", "oracle"),
        "share": figures.number("freshrank_simulator_lift_ratio", "recent"),
        "lifetime_share": figures.number("freshrank_simulator_lift_ratio", "lifetime"),
    }


def join(figures: Figures) -> dict[str, float]:
    """Returns the counters of the joiner that have no labels, by their short names."""
    names = [name for name in figures.names(JOINER) if name.endswith("_total")]
    return {
        name.removeprefix(JOINER).removesuffix("_total"): figures.total(name) or 0.0
        for name in names
        if any(not labels for labels, _ in figures.of(name))
    }


def lag(figures: Figures) -> dict[str, Any]:
    """Returns how far the event time that joiner (by partition) and trainer have come to is behind now, in ms."""
    ages = sorted(figures.of("freshrank_joiner_watermark_age_seconds"))
    joiner = {partition: 1_000 * age for (partition,), age in ages}
    return {
        "joiner_ms": joiner,
        "worst_joiner_ms": max(joiner.values(), default=None),
        "trainer_ms": ms(figures.worst("freshrank_trainer_watermark_age_seconds")),
    }


def attention(figures: Figures) -> dict[str, dict[str, float]]:
    """Returns by scenario what it takes from each other one; empty where the network has no such attention."""
    found = figures.of("freshrank_trainer_scenario_attention_ratio")
    return _nested([((scenario, other), value) for (other, scenario), value in found])


def gates(figures: Figures) -> list[dict[str, Any]]:
    """Returns, gate by gate, the mean weight of each expert; heads are a scenario and a task ("": of all tasks)."""
    found: dict[str, dict[tuple[str, str], dict[str, float]]] = {}
    for (expert, name, scenario, task), weight in figures.of("freshrank_trainer_gate_ratio"):
        found.setdefault(name, {}).setdefault((scenario, task), {})[expert] = weight
    return [
        {"gate": name, "heads": [{"scenario": head[0], "task": head[1], "mean": mean} for head, mean in heads.items()]}
        for name, heads in found.items()
    ]


def online(figures: Figures) -> list[dict[str, Any]]:
    """Returns the agents' figures of the rankings that were served, a row per scenario and task; empty without them."""

    def row(scenario: str, task: str) -> dict[str, Any]:
        labels = (scenario, task)
        cohorts = ("current", "previous")
        calibration = {
            cohort: figures.worst("freshrank_agents_online_calibration_ratio", cohort, *labels) for cohort in cohorts
        }
        return {
            "scenario": scenario,
            "task": task,
            "auc": figures.worst("freshrank_agents_online_auc_ratio", *labels),
            "ctr": figures.worst("freshrank_agents_online_ctr_ratio", *labels),
            "calibration": calibration,
            "drift": figures.number("freshrank_agents_drift_alarms_total", *labels),
        }

    return [row(*labels) for labels in dict.fromkeys(at for at, _ in figures.of("freshrank_agents_online_ctr_ratio"))]


def traffic(figures: Figures) -> dict[str, Any]:
    """Returns what the simulator is at; None and empty without one."""
    return {
        "requests_per_s": figures.number("freshrank_simulator_rate_requests"),
        "bots": figures.number("freshrank_simulator_bots_ratio"),
        "is_open": {name: bool(value) for (name,), value in figures.of("freshrank_simulator_open_ratio")},
    }


def ms(seconds: float | None) -> float | None:
    """Returns milliseconds."""
    return None if seconds is None else 1_000 * seconds


def _nested(samples: Sequence[tuple[Labels, float]]) -> dict[str, dict[str, float]]:
    """Returns samples of two labels by the first and the second; the first of several processes is taken."""
    found: dict[str, dict[str, float]] = {}
    for (row, column), value in samples:
        found.setdefault(row, {}).setdefault(column, value)
    return found


def curves(state: Mapping[str, Any]) -> Numbers:
    """Returns the points that a state adds to the curves of the page, by the curve's name."""
    points: Numbers = {
        "freshness_p50_ms": state["freshness"]["p50_ms"],
        "freshness_p99_ms": state["freshness"]["p99_ms"],
        "model_age_ms": state["model"]["age_ms"],
        "top1_changed": state["model"]["top1_changed"],
        "rbo": state["model"]["rbo"],
        "lift_served": state["lift"]["served"],
        "lift_random": state["lift"]["random"],
        "lift_oracle": state["lift"]["oracle"],
        "joiner_lag_ms": state["lag"]["worst_joiner_ms"],
        "trainer_lag_ms": state["lag"]["trainer_ms"],
        "requests_per_s": state["flow"]["rankings_per_s"],
    }
    for scenario, weights_of in state["weights"].items():
        points |= {f"weight.{scenario}.{task}": weight for task, weight in weights_of.items()}
    for task, by_scenario in state["quality"].items():
        for scenario, cell in by_scenario.items():
            points[f"ne.{task}.{scenario}"] = cell["ne"]
            points[f"calibration.{task}.{scenario}"] = cell["calibration"]
    return points
