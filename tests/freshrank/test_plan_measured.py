"""The simulation against what was measured: the hop of the joiner on Apache Kafka, and the whole demo (P1)."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from freshrank.plan_costs import packaged_costs
from freshrank.plan_pipeline import STAGES, Pipeline
from freshrank.plan_ranks import around
from freshrank.plan_simulation import simulate

COSTS = packaged_costs()
RESULTS = Path(__file__).parents[2] / "benchmarks/results/latest.json"
RUN_MS = 59_000.0
SHARED = 2.0
"""Ms of the clock for a ms of CPU time: eight processes keep 1.4 of two cores busy, and 1 / (1 - 0.7 ** 2) = 2."""
SMALLER = 0.5
"""The demo's network beside the preset `small`."""
ROWS_PER_EVENT = 1.58
"""Windows of 2 and of 6 s, and a third of the items clicked: counted in a run of the demo."""


def demo() -> Pipeline:
    """Returns `configs/demo.yaml` at the load of P1, with the costs of `per_core.json`."""
    dearer = SHARED * around(COSTS)
    row_us = SMALLER * COSTS["trainer.step_row"] + COSTS["trainer.read"] + COSTS["trainer.lead"]
    probe_ms = SMALLER * 8 * 3 * 20 * COSTS["ranker.probe"] * 1e-3
    rows = 1_000
    return Pipeline(
        rows_per_s=ROWS_PER_EVENT * COSTS["reach.whole"],
        way_ms=SHARED * COSTS["joiner.way"] + 10,  # and over HTTP
        commit_ms=SHARED * COSTS["joiner.commit"],
        commit_spread=COSTS["joiner.commit_spread"],
        batch_rows=128,
        max_wait_ms=100,
        step_ms=dearer * SMALLER * COSTS["trainer.step"],
        row_ms=dearer * row_us * 1e-3,
        step_spread=COSTS["joiner.commit_spread"],
        publish_interval_ms=300,
        build_ms=SHARED * (2 + rows * COSTS["publish.row"] * 1e-3),
        store_ms=SHARED * (4 + probe_ms),
        apply_ms=SHARED * (15 + rows * COSTS["apply.row"] * 1e-3),
        full_build_ms=SHARED * 6,
        full_store_ms=SHARED * (6 + probe_ms),
        full_apply_ms=SHARED * 30,
        request_ms=1_000 / 44,
    )


def measured() -> dict[str, tuple[float, float]]:
    """Returns p50 and p99 of each stage of P1, and of the whole."""
    figure = json.loads(RESULTS.read_text())["P1"]
    found = {name: (float(p50), float(p99)) for name, p50, p99 in re.findall(r"(\w+) (\d+) / (\d+)", figure["note"])}
    whole = re.search(r"p50 (\d+) ms", figure["note"])
    assert whole is not None
    return {name: found[name] for name in STAGES} | {"whole": (float(whole[1]), figure["value"])}


def simulated() -> dict[str, tuple[float, float]]:
    stages_A5 = simulate(
        demo(),
        from_ms=5_000,
        until_ms=RUN_MS,
        num_actions=20_000,
        rng=np.random.default_rng(0),
    )
    columns = dict(zip(STAGES, stages_A5.T, strict=True)) | {"whole": stages_A5.sum(axis=1)}
    return {name: tuple(np.quantile(column, [0.5, 0.99]).tolist()) for name, column in columns.items()}


def test_the_simulated_hop_is_the_measured_one() -> None:
    only_joiner = replace(
        demo(), way_ms=COSTS["joiner.way"], commit_ms=COSTS["joiner.commit"], rows_per_s=1_000, batch_rows=1,
        max_wait_ms=0, step_ms=0, row_ms=0, build_ms=0, store_ms=0, full_build_ms=0, full_store_ms=0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    stages_A5 = simulate(only_joiner, from_ms=3_000, until_ms=30_000, num_actions=10_000, rng=rng)
    p50, p99 = np.quantile(stages_A5[:, :2].sum(axis=1), [0.5, 0.99])
    assert p50 == pytest.approx(COSTS["joiner.hop_p50"], rel=0.1)
    assert p99 == pytest.approx(COSTS["joiner.hop_p99"], rel=0.1)


def test_the_simulated_demo_is_the_measured_one_in_the_middle_of_each_stage_and_at_the_end_of_all() -> None:
    found, true = simulated(), measured()
    assert found["whole"] == pytest.approx(true["whole"], rel=0.15)
    for stage in STAGES:
        assert found[stage][0] == pytest.approx(true[stage][0], rel=0.3, abs=10), stage
