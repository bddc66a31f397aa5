"""Alert rules: each names metrics that exist, is explained in docs/alerts.md, and fires when it should and only then.

Prometheus itself (`promtool`) evaluates them: over a quiet system none may fire; over one with a fault, those named
here and no other.
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.promql import faults, metrics_named

ROOT = Path(__file__).parents[2]
RULES = ROOT / "docker/alerts.yml"
PAGE = (ROOT / "docs/alerts.md").read_text()
GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
JOBS = [job["job_name"] for job in yaml.safe_load((ROOT / "docker/prometheus.yml").read_text())["scrape_configs"]]
MINUTES = 20
AT = {job: f'{{job="{job}",instance="{job}"}}' for job in JOBS}
AT |= {job: f'{{job="{job}",instance="{job}"}}' for job in ("blender", "probe")}  # not part of every run

FRESH = "freshrank_ranker_freshness_seconds"
CELL = 'job="trainer",instance="trainer",task="click",scenario="all"'
QUIET = {
    **{f"up{AT[job]}": "1" for job in JOBS},
    **{f"process_start_time_seconds{AT[job]}": "1000" for job in JOBS},
    f'{FRESH}_bucket{{job="ranker",instance="ranker",le="1.0"}}': "0+995x{n}",
    f"{FRESH}_count{AT['ranker']}": "0+1000x{n}",
    'freshrank_ranker_freshness_negative_total{job="ranker",instance="ranker",stage="joined"}': "0+10x{n}",
    f"freshrank_ranker_model_age_seconds{AT['ranker']}": "2",
    f"freshrank_ranker_version{AT['ranker']}": "1+60x{n}",
    f"freshrank_ranker_requests_total{AT['ranker']}": "0+1000x{n}",
    'freshrank_ranker_degraded_total{job="ranker",instance="ranker",reason="sequence"}': "0+5x{n}",
    'freshrank_ranker_snapshots_refused_total{job="ranker",instance="ranker",reason="hash"}': "0",
    'freshrank_ranker_blender_fallback_total{job="ranker",instance="ranker",reason="shifted"}': "0",
    'freshrank_ranker_score_shift_ratio{job="ranker",instance="ranker",task="click",scenario="home"}': "0.05",
    'freshrank_ranker_latency_seconds_bucket{job="ranker",instance="ranker",le="0.01"}': "0+995x{n}",
    'freshrank_ranker_latency_seconds_bucket{job="ranker",instance="ranker",le="1.0"}': "0+1000x{n}",
    'freshrank_ranker_latency_seconds_bucket{job="ranker",instance="ranker",le="+Inf"}': "0+1000x{n}",
    **{
        f"freshrank_ranker_{name}_total{AT['ranker']}": "0"
        for name in ("impressions_dropped", "delivery_failures", "feedback_dropped", "store_unavailable")
    },
    f"freshrank_joiner_impressions_total{AT['joiner']}": "0+1000x{n}",
    f"freshrank_joiner_feedback_total{AT['joiner']}": "0+1000x{n}",
    f"freshrank_joiner_feedback_unmatched_total{AT['joiner']}": "0+5x{n}",
    f"freshrank_joiner_feedback_late_total{AT['joiner']}": "0+5x{n}",
    f"freshrank_joiner_malformed_total{AT['joiner']}": "0",
    f"freshrank_joiner_lost_messages_total{AT['joiner']}": "0",
    'freshrank_joiner_watermark_age_seconds{job="joiner",instance="joiner",partition="0"}': "1",
    f"freshrank_trainer_watermark_age_seconds{AT['trainer']}": "3",
    'freshrank_trainer_snapshots_total{job="trainer",instance="trainer",kind="delta"}': "0+60x{n}",
    'freshrank_trainer_publish_failures_total{job="trainer",instance="trainer",reason="rejected"}': "0",
    'freshrank_trainer_publish_failures_total{job="trainer",instance="trainer",reason="unavailable"}': "0",
    f"freshrank_trainer_steps_total{AT['trainer']}": "0+300x{n}",
    f"freshrank_trainer_gate_holding_ratio{AT['trainer']}": "0",
    f"freshrank_trainer_gate_frozen_ratio{AT['trainer']}": "0",
    **{
        f"freshrank_trainer_{name}_total{AT['trainer']}": "0"
        for name in ("dead_letters", "skipped", "checkpoint_failures")
    },
    f"freshrank_trainer_normalized_entropy_ratio{{{CELL}}}": "0.9",
    f"freshrank_trainer_calibration_ratio{{{CELL}}}": "1.05",
    f"freshrank_trainer_window_positives{{{CELL}}}": "5000",
    f"freshrank_agents_redis_failures_total{AT['agents']}": "0",
    'freshrank_agents_drift_alarms_total{job="agents",instance="agents",task="click",scenario="home"}': "0",
    f"freshrank_probe_missed_total{AT['probe']}": "0",
    f"freshrank_probe_failures_total{AT['probe']}": "0",
    f"freshrank_blender_rollbacks_total{AT['blender']}": "0",
    f"freshrank_blender_exploration_trips_total{AT['blender']}": "0",
}
"""Series of a system that does well, a value per minute; `n` stands for the number of minutes."""


def series(metric: str, **labels: str) -> str:
    """Returns the one series of `QUIET` of a metric, and of these labels."""
    [found] = [
        name
        for name in QUIET
        if name.split("{")[0] == metric and all(f'{label}="{value}"' in name for label, value in labels.items())
    ]
    return found


ONCE = "0x15 1x{n}"
"""A counter that counts one thing after a quarter of an hour."""
TWICE_A_MINUTE = "0+2x{n}"
FAULTS: dict[str, dict[str, str]] = {
    "FreshnessBudgetBurnsFast FreshnessBudgetBurnsSlowly": {series(f"{FRESH}_bucket"): "0+800x{n}"},
    "FreshnessBudgetBurnsSlowly": {series(f"{FRESH}_bucket"): "0+920x{n}"},
    "ModelTooOld": {series("freshrank_ranker_model_age_seconds"): "2+60x{n}"},
    "NoModel": {series("freshrank_ranker_version"): "0"},
    "ProbeMisses": {series("freshrank_probe_missed_total"): TWICE_A_MINUTE},
    "ClocksDiffer": {series("freshrank_ranker_freshness_negative_total"): "0+400x{n}"},
    "JoinerDown": {series("up", job="joiner"): "0"},
    "TrainerDown": {series("up", job="trainer"): "0"},
    "AgentsDown": {series("up", job="agents"): "0"},
    "RankerDown AllRankersDown": {series("up", job="ranker"): "0"},
    "RankerDown": {'up{job="ranker",instance="another"}': "0"},
    "ProcessRestarts": {series("process_start_time_seconds", job="trainer"): "1000+60x{n}"},
    "JoinerBehind": {series("freshrank_joiner_watermark_age_seconds"): "100"},
    "TrainerBehind": {series("freshrank_trainer_watermark_age_seconds"): "200"},
    "MalformedEvents": {series("freshrank_joiner_malformed_total"): "0+10x{n}"},
    "DeadExamples": {series("freshrank_trainer_dead_letters_total"): ONCE},
    "FeedbackUnmatched": {series("freshrank_joiner_feedback_unmatched_total"): "0+60x{n}"},
    "MessagesLost": {series("freshrank_joiner_lost_messages_total"): ONCE},
    "ImpressionsDropped": {series("freshrank_ranker_impressions_dropped_total"): TWICE_A_MINUTE},
    "GateHolds": {series("freshrank_trainer_gate_holding_ratio"): "1"},
    "PublishingFrozen": {series("freshrank_trainer_gate_frozen_ratio"): "1"},
    "SnapshotsRejected": {series("freshrank_trainer_publish_failures_total", reason="rejected"): TWICE_A_MINUTE},
    "NothingPublished": {series("freshrank_trainer_snapshots_total"): "7"},
    "SnapshotsRefused": {series("freshrank_ranker_snapshots_refused_total"): ONCE},
    "StepsSkipped": {series("freshrank_trainer_skipped_total"): ONCE},
    "CheckpointsFail": {series("freshrank_trainer_checkpoint_failures_total"): ONCE},
    "WorseThanTheMean": {series("freshrank_trainer_normalized_entropy_ratio"): "1.1"},
    "Miscalibrated": {series("freshrank_trainer_calibration_ratio"): "0.7"},
    "ScoresMoved": {series("freshrank_ranker_score_shift_ratio"): "0.3"},
    "LabelsDrift": {series("freshrank_agents_drift_alarms_total"): ONCE},
    "RankingSlow": {series("freshrank_ranker_latency_seconds_bucket", le="0.01"): "0+900x{n}"},
    "AnswersDegraded": {series("freshrank_ranker_degraded_total"): "0+50x{n}"},
    "RedisUnavailable": {series("freshrank_agents_redis_failures_total"): TWICE_A_MINUTE},
    "BlenderRolledBack": {series("freshrank_blender_rollbacks_total"): ONCE},
    "ExplorationTripped": {series("freshrank_blender_exploration_trips_total"): ONCE},
    "BlenderFallsBack": {series("freshrank_ranker_blender_fallback_total"): "0+100x{n}"},
    # No alarm, although a figure is bad: too few labels to tell.
    "": {
        series("freshrank_trainer_normalized_entropy_ratio"): "1.1",
        series("freshrank_trainer_calibration_ratio"): "3",
        series("freshrank_trainer_window_positives"): "40",
    },
}
"""Alerts that fire -> what is otherwise than in `QUIET`."""


@pytest.mark.parametrize("name", ALERTS)
def test_alert_is_explained(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["runbook_url"] == f"docs/alerts.md#{name.lower()}"
    assert PAGE.count(f"\n### {name}\n") == 1, "docs/alerts.md says what it means and what to do"


def test_page_explains_no_alert_that_is_gone() -> None:
    assert set(re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)) == ALERTS.keys()


@pytest.mark.parametrize(
    "rule", [rule for group in GROUPS for rule in group["rules"]], ids=lambda rule: rule["expr"][:40]
)
def test_rule_reads_metrics_that_exist(rule: dict[str, Any]) -> None:
    assert list(faults(rule["expr"])) == []
    jobs = [job for named in re.findall(r'job(?:=|=~)"([^"]*)"', rule["expr"]) for job in named.split("|")]
    assert set(jobs) <= set(JOBS)


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("freshrank_ranker_surprise_total > 0", "freshrank_ranker_surprise_total is no metric"),
        ('freshrank_ranker_requests_total{reason="x"}', "freshrank_ranker_requests_total has no label reason"),
        ("sum by (reason) (freshrank_ranker_requests_total)", "nothing here has a label reason"),
        ("rate(freshrank_ranker_latency_seconds[5m])", "no such series"),
        ("freshrank_ranker_requests_total_count", "no such series"),
        ('freshrank_ranker_freshness_seconds_bucket{le="1"}', "no bucket ends at 1"),
    ],
)
def test_check_finds_what_does_not_exist(expression: str, found: str) -> None:
    assert found in " ".join(faults(expression))


def test_every_alert_has_a_case_that_fires_it_from_series_that_exist() -> None:
    assert {name for names in FAULTS for name in names.split()} == ALERTS.keys()
    assert [fault for name in QUIET for fault in faults(name)] == []
    read = {metric for alert in ALERTS.values() for metric in metrics_named(alert["expr"])}
    assert read <= {metric for name in QUIET for metric in metrics_named(name)}


def test_alerts_fire_on_their_fault_alone(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (of Prometheus) is not installed")
    checked = subprocess.run([promtool, "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tests = [case("", {}), *(case(names, changes) for names, changes in FAULTS.items())]
    cases = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    path = tmp_path / "cases.yml"
    path.write_text(yaml.safe_dump(cases, width=10_000))
    found = subprocess.run([promtool, "test", "rules", path], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def case(names: str, changes: dict[str, str]) -> dict[str, Any]:
    """Returns one test of promtool's: at the end these alerts fire, and no other."""
    values = {name: value.format(n=MINUTES) for name, value in {**QUIET, **changes}.items()}
    return {
        "name": names or "quiet",
        "interval": "1m",
        "input_series": [
            {"series": name, "values": value if "x" in value else f"{value}x{MINUTES}"}
            for name, value in values.items()
        ],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{MINUTES}m",
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(names.split())],
            }
        ],
    }
