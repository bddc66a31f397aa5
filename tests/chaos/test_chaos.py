"""One seed of chaos: the short form of `make chaos`, without its broker restart.

A broker that restarts may skip transaction marks (KAFKA-20734, `docs/chaos.md`), which no client can mend: a test that
has one says at times more about the broker than about the joiner.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.chaos.__main__ import run_seed
from tests.chaos.broker import Broker
from tests.chaos.faults import FaultConfig, faults
from tests.chaos.run import POLICIES, schema_of

SEED = 3
BLOWS = FaultConfig(duration_ms=8_000, num_broker_restarts=0)


@pytest.mark.integration
@pytest.mark.slow
def test_one_seed_of_chaos(kafka_home: Path, free_port: Callable[[], int], tmp_path: Path) -> None:
    broker = Broker(tmp_path / "kafka", (free_port(), free_port()), kafka_home)
    said: list[str] = []
    try:
        outcome = run_seed(SEED, broker, tmp_path / "joiners", said.append, BLOWS)
    finally:
        broker.close()
    assert outcome.is_right, (outcome, said)
    assert outcome.hanging == 0
    assert outcome.kills >= 1
    assert outcome.labels > outcome.report["judged"] > 1_000


def test_blows_are_those_of_the_seed_and_fall_within_the_load() -> None:
    config = FaultConfig(duration_ms=10_000)
    blows = faults(config, np.random.default_rng(1))
    assert blows == faults(config, np.random.default_rng(1)) != faults(config, np.random.default_rng(2))
    assert [blow.kind for blow in blows].count("kill") == config.num_kills
    assert all(1_000 <= blow.at_ms <= 10_000 for blow in blows)


def test_every_policy_has_its_turn_within_four_seeds() -> None:
    seen = {task.policy for seed in range(4) for task in schema_of(seed).tasks.values()}
    assert seen == {"wait", "eager", *POLICIES}
