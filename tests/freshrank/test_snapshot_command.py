"""`freshrank snapshot` on a real Redis: what it says, and what it does."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from click.testing import CliRunner, Result

from freshrank.cli import main
from freshrank.config import RunConfig, load_config
from freshrank.exits import ExitCode
from freshrank.train import production_weights
from model.gate_report import Finding
from model.rollback import full_versions
from model.store_redis import RedisSnapshotStore
from model.trainer import Trainer
from model.trainer_config import TrainerParts

pytestmark = pytest.mark.integration
DEMO = Path(__file__).parents[2] / "configs/demo.yaml"
Snapshot = Callable[..., Result]


@pytest.fixture
def run(redis_url: str) -> RunConfig:
    return load_config(DEMO, [f"redis.url={redis_url}", "trainer.full_every=1", "trainer.device=cpu"])


@pytest.fixture
def store(run: RunConfig) -> Iterator[RedisSnapshotStore]:
    """Two full versions that were live, and a third that was refused."""
    opened = RedisSnapshotStore(run.redis.url, run.trainer.model_name, run.store)
    trainer = Trainer(run.schema, run.trainer, run.model, now_ms=lambda: 1_000, parts=TrainerParts(store=opened))
    first = trainer.publish()
    with torch.no_grad():
        next(iter(trainer.learner.trained.parameters.values())).add_(0.5)
    second = trainer.publish()
    assert first is not None and second is not None
    refused = msgspec.structs.replace(second, version=3)
    opened.put(refused, opened.payload(second))
    findings = [
        Finding(check="psi", state="block", text="probe scores moved by 0.400, allowed 0.25 (home, click)"),
        Finding(check="churn", state="not_judged", text="no weights"),
    ]
    opened.reject(refused, "psi: probe scores moved by 0.400, allowed 0.25 (home, click)", findings)
    yield opened
    opened.close()


@pytest.fixture
def snapshot(run: RunConfig, store: RedisSnapshotStore) -> Snapshot:
    def call(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["snapshot", *arguments, *run.arguments])

    return call


def test_show_says_what_is_live_refused_and_why(snapshot: Snapshot) -> None:
    lines = snapshot("show").stdout.splitlines()
    assert lines[0].startswith("  1  full") and lines[1].startswith("* 2  full")
    assert lines[2] == "- 3  refused: psi: probe scores moved by 0.400, allowed 0.25 (home, click)"
    assert lines[3:] == [
        "    psi  block  probe scores moved by 0.400, allowed 0.25 (home, click)",
        "    churn  not_judged  no weights",
    ]
    assert "refused: psi" in snapshot("show", "3").stdout
    assert "version 1  full" in snapshot("show", "1").stdout


def test_diff_tells_distances(snapshot: Snapshot) -> None:
    same, other = snapshot("diff", "2", "3").stdout, snapshot("diff", "1", "2").stdout
    assert "dense   distance 0 of" in same
    assert "dense   distance 0 of" not in other and "dense   distance" in other


def test_a_rollback_serves_the_old_one_anew_and_denies_what_came_after(
    snapshot: Snapshot, store: RedisSnapshotStore
) -> None:
    result = snapshot("rollback", "1", "--reason", "clicks fell", "--quarantine", "0:5-9", "--quarantine", "1:0-2")
    assert result.stdout == "version 1 serves as 4; denied: 2\n"
    live = store.pointer()
    first = store.manifest(1)
    assert live is not None and live.version == 4
    assert first is not None and store.payload(live) == store.payload(first)
    assert store.rollbacks()[0].quarantine == {0: (5, 9), 1: (0, 2)}
    assert [manifest.version for manifest in full_versions(store)] == [1, 4]
    assert "< 4  rolled back to 1 at 20" in snapshot("show").stdout
    assert "denied" in snapshot("show", "2").stdout


def test_a_refused_version_can_be_promoted_by_hand(snapshot: Snapshot, store: RedisSnapshotStore) -> None:
    before = store.pointer()
    assert snapshot("promote", "3", "--reason", "wanted").stdout == "version 3 serves as 4: wanted\n"
    live = store.pointer()
    assert before is not None and live is not None
    assert (live.version, live.kind) == (4, "full") and live.epoch > before.epoch
    assert "dense   distance 0 of" in snapshot("diff", "2", "4").stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("rollback", "9", "--reason", "r"), "version 9 is not kept as a full one; full versions that are kept: 1, 2"),
        (("promote", "1", "--reason", "r"), "version 1 is not a rejected one; rejected ones that are kept: 3"),
        (("show", "9"), "version 9 is not in the store"),
        (("rollback", "1", "--reason", "r", "--quarantine", "0:9-5"), "--quarantine: '0:9-5' is not allowed"),
    ],
)
def test_a_wrong_version_is_one_line(snapshot: Snapshot, arguments: tuple[str, ...], sentence: str) -> None:
    result = snapshot(*arguments)
    assert result.exit_code == ExitCode.USAGE
    assert f"freshrank: {sentence}" in result.stderr


def test_the_gate_gets_the_production_weights_of_each_scenario(run: RunConfig) -> None:
    weights = production_weights(run)
    assert weights["home"] == weights["default"] == (1.0, 5.0, -2.0)
    scaled = production_weights(run.with_overrides(["blender.scale.order=2.0"]))
    assert scaled["search"] == (1.0, 2.5, -2.0)
