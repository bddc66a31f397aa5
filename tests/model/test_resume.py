"""Resume: a trainer that was killed anywhere ends with the same bits as one that was not."""

import hashlib
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save

from model.checkpoint import FileWriter, checkpoint_paths, save_checkpoint
from model.checkpoint_load import load_checkpoint
from model.config import ModelConfig
from model.embedding_config import EmbeddingConfig
from model.exceptions import CheckpointMismatchError
from model.optim import OptimConfig
from model.position_bias import PositionBiasConfig
from model.sequence_blocks import SequenceBlocksConfig
from model.source import MemoryExampleSource
from model.trainer import Trainer
from model.trainer_config import TrainerConfig
from stream.schema import FeatureConfig, SchemaConfig
from tests.model.example_log import MODEL, SCHEMA, Clock, new_trainer, partition_log
from tests.model.test_checkpoint import NUM_TOUCHES, BreakingWriter, CrashError
from tests.model.train_child import CONFIG, trainer_on, write_log

LOG = {0: partition_log(seed=1, num_messages=14), 1: partition_log(seed=2, num_messages=9, first=3)}
LOG[0].insert(4, b"not a message")
LOG[1].insert(0, b"")
EVERY_BATCH = replace(CONFIG, checkpoint_interval_ms=1)

pytestmark = pytest.mark.usefixtures("one_thread")


def deterministic(
    checkpoint_dir: Path | None,
    config: TrainerConfig = EVERY_BATCH,
    *,
    log: dict[int, list[bytes]] = LOG,
    writer: FileWriter | None = None,
) -> Trainer:
    source = MemoryExampleSource(log)
    return new_trainer(
        source=source, checkpoint_dir=checkpoint_dir, config=config, clock=Clock(step_ms=1), writer=writer
    )


def never() -> bool:
    return False


def after_rounds(num_rounds: int) -> Callable[[], bool]:
    """Tells a trainer to stop after some rounds of its loop: a SIGTERM."""
    looks = iter([False] * num_rounds)
    return lambda: next(looks, True)


@pytest.fixture(scope="module")
def uninterrupted() -> Trainer:
    trainer = deterministic(None)
    trainer.run(never)
    assert trainer.learner.num_steps > 10
    return trainer


def assert_same_bits(one: Trainer, two: Trainer) -> None:
    ours, theirs = one.learner.trained.state(), two.learner.trained.state()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert one.learner.trained.state_meta() == two.learner.trained.state_meta()
    our_metrics, their_metrics = one.metrics.state(), two.metrics.state()
    assert our_metrics.keys() == their_metrics.keys()
    for name, array in our_metrics.items():
        np.testing.assert_array_equal(array, their_metrics[name], err_msg=name)
    assert one.positions == two.positions
    for count in ("messages", "examples", "steps"):
        assert getattr(one.stats, count) == getattr(two.stats, count), count


@pytest.mark.parametrize("poll_messages", [1, 3, 64])
def test_the_bits_depend_on_the_log_alone(uninterrupted: Trainer, poll_messages: int) -> None:
    other = deterministic(None, replace(EVERY_BATCH, poll_messages=poll_messages))
    other.run(never)
    assert_same_bits(other, uninterrupted)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", [1, 2, 5, 9])
def test_a_crash_around_any_step_changes_no_bit(
    uninterrupted: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, when: str
) -> None:
    crashing = deterministic(tmp_path)
    honest = crashing.learner.learn
    calls = 0

    def crash(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == step and when == "before":
            raise CrashError
        report = honest(*args)  # type: ignore[arg-type]  # passed through as it came
        if calls == step:
            raise CrashError
        return report

    monkeypatch.setattr(crashing.learner, "learn", crash)
    with pytest.raises(CrashError):
        crashing.run(never)
    resumed = deterministic(tmp_path)
    resumed.run(never)
    assert_same_bits(resumed, uninterrupted)


@pytest.mark.parametrize("touch", range(1, 3 * NUM_TOUCHES, 4))
def test_a_crash_inside_a_checkpoint_changes_no_bit(uninterrupted: Trainer, tmp_path: Path, touch: int) -> None:
    with pytest.raises(CrashError):
        deterministic(tmp_path, writer=BreakingWriter(touch, CrashError())).run(never)
    resumed = deterministic(tmp_path)
    resumed.run(never)
    assert_same_bits(resumed, uninterrupted)


def test_being_stopped_and_started_all_the_time_changes_no_bit(uninterrupted: Trainer, tmp_path: Path) -> None:
    rare = replace(CONFIG, checkpoint_interval_ms=1_000_000)
    for _ in range(200):
        trainer = deterministic(tmp_path, rare)
        trainer.run(after_rounds(9))
        if trainer.learner.num_steps == uninterrupted.learner.num_steps:
            break
    assert_same_bits(trainer, uninterrupted)


def test_a_checkpoint_inside_a_long_message_goes_on_at_its_row(tmp_path: Path) -> None:
    config = replace(CONFIG, checkpoint_interval_ms=1_000_000, batch_rows=3, poll_messages=64)
    log = {partition: messages[:4] for partition, messages in LOG.items()}
    whole = deterministic(None, config, log=log)
    whole.run(never)
    rows: set[int] = set()
    for _ in range(4):
        stopped = deterministic(tmp_path, config, log=log)
        stopped.run(after_rounds(4))
        rows.update(position.row for position in stopped.positions.values())
    assert rows > {0}, "some stop was inside a message, or this test shows nothing"
    resumed = deterministic(tmp_path, config, log=log)
    resumed.run(never)
    assert_same_bits(resumed, whole)


def test_kill_9_changes_no_bit(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    log = {0: partition_log(seed=3, num_messages=200), 1: partition_log(seed=4, num_messages=160)}
    log_folder, checkpoint_dir = tmp_path / "log", tmp_path / "checkpoints"
    write_log(log_folder, log)
    whole = trainer_on(log_folder, None)
    whole.run(never)

    num_kills = 0
    for _ in range(2):
        newest = checkpoint_paths(checkpoint_dir)[:1]
        child = subprocess.Popen([sys.executable, "-m", "tests.model.train_child", log_folder, checkpoint_dir])
        try:
            wait_until(
                lambda: child.poll() is not None or checkpoint_paths(checkpoint_dir)[:1] != newest,  # noqa: B023
                "the child writes a checkpoint",
                timeout_s=60,
            )
        finally:
            child.kill()
        num_kills += child.wait() == -signal.SIGKILL
    assert num_kills == 2, "each child was killed in the middle, or this test shows nothing"
    killed = trainer_on(log_folder, checkpoint_dir)
    assert killed.resume()
    assert killed.learner.num_steps < whole.learner.num_steps
    killed.run(never)
    assert_same_bits(killed, whole)


# What a checkpoint can be continued with.


def with_checkpoint(folder: Path) -> None:
    trainer = deterministic(folder)
    trainer.run(never)


def resumed_with(folder: Path, *, schema: SchemaConfig = SCHEMA, model: ModelConfig = MODEL) -> Trainer:
    trainer = new_trainer(source=MemoryExampleSource({}), checkpoint_dir=folder, schema=schema, model=model)
    assert trainer.resume()
    return trainer


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert not deterministic(tmp_path / "none").resume()
    assert not deterministic(None).resume()


@pytest.mark.parametrize(
    ("schema", "model", "sentence"),
    [
        (
            replace(SCHEMA, scenarios=("home", "search", "deals")),
            MODEL,
            r"scenarios: was \['home', 'search'\], is \['home', 'search', 'deals'\]",
        ),
        (replace(SCHEMA, tasks={"click": SCHEMA.tasks["click"]}), MODEL, r"tasks: was \['click', 'order'\]"),
        (
            replace(SCHEMA, features=replace(SCHEMA.features, user={"city": FeatureConfig(kind="categorical")})),
            MODEL,
            "features.user.age: was {'kind': 'numeric', 'many': False}, is absent",
        ),
        (
            replace(SCHEMA, features=replace(SCHEMA.features, context={})),
            MODEL,
            "features.context.device: was .*; features.context.topics: was .*, is absent",
        ),
        (SCHEMA, replace(MODEL, embedding=EmbeddingConfig(width=8)), "model.embedding.width: was 4, is 8"),
        (SCHEMA, ModelConfig(), "model.network.expert_hidden: was 8, is 128"),
        (SCHEMA, ModelConfig(architecture="mmoe"), "model.architecture: was hinet, is mmoe; "),
        (SCHEMA, replace(MODEL, sequence=SequenceBlocksConfig()), "model.sequence: was None, is {'blocks': 4, "),
        (
            SCHEMA,
            replace(MODEL, position_bias=PositionBiasConfig(context="context.device")),
            "model.position_bias: was None, is {'max_position': 50, 'hidden': 64, 'context': 'context.device'}",
        ),
    ],
)
def test_a_config_the_weights_cannot_follow_is_refused_in_a_sentence(
    tmp_path: Path, schema: SchemaConfig, model: ModelConfig, sentence: str
) -> None:
    with_checkpoint(tmp_path)
    with pytest.raises(CheckpointMismatchError, match=f"cannot be continued, the config changed: .*{sentence}") as why:
        resumed_with(tmp_path, schema=schema, model=model)
    assert "\n" not in str(why.value)


def test_a_checkpoint_of_an_earlier_format_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with_checkpoint(tmp_path)
    newest = load_checkpoint(checkpoint_paths(tmp_path)[0])
    meta = {name: value for name, value in newest.manifest.learner_meta.items() if name != "growth"} | {"format": 4}
    manifest = msgspec.structs.replace(newest.manifest, learner_meta=meta)
    save_checkpoint(tmp_path, replace(newest, manifest=manifest), keep=1)
    with pytest.raises(CheckpointMismatchError, match="does not fit: format: 4 is not allowed; 6$"):
        resumed_with(tmp_path)


def test_a_checkpoint_from_before_there_were_ranks_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with_checkpoint(tmp_path)
    path = checkpoint_paths(tmp_path)[0]
    newest = load_checkpoint(path)
    (path / "rows-00000-of-00001.safetensors").unlink()
    tensors, metrics = save({n: t.contiguous() for n, t in newest.tensors.items()}), "metrics.safetensors"
    (path / "tensors.safetensors").write_bytes(tensors)
    manifest = msgspec.to_builtins(newest.manifest)
    del manifest["num_ranks"]
    manifest["learner_meta"]["format"] = 5
    manifest["files"] = {
        "tensors.safetensors": (len(tensors), hashlib.sha256(tensors).hexdigest()),
        metrics: newest.manifest.files[metrics],
    }
    (path / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(CheckpointMismatchError, match="does not fit: format: 5 is not allowed; 6$"):
        resumed_with(tmp_path)


def test_learning_rates_and_label_windows_may_change(tmp_path: Path, uninterrupted: Trainer) -> None:
    with_checkpoint(tmp_path)
    tasks = {name: replace(task, window_ms=5_000, policy="wait") for name, task in SCHEMA.tasks.items()}
    trainer = resumed_with(
        tmp_path, schema=replace(SCHEMA, tasks=tasks), model=replace(MODEL, optim=OptimConfig(row_lr=0.5))
    )
    assert trainer.learner.num_steps == uninterrupted.learner.num_steps


def test_a_broken_newest_checkpoint_costs_only_the_way_from_the_one_before(
    tmp_path: Path, uninterrupted: Trainer
) -> None:
    with_checkpoint(tmp_path)
    (checkpoint_paths(tmp_path)[0] / "tensors.safetensors").write_bytes(b"torn")
    trainer = deterministic(tmp_path)
    trainer.run(never)
    assert_same_bits(trainer, uninterrupted)
