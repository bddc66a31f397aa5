"""The gate in a running trainer: it lets health pass, and names each fault that it stops."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from model.gate_config import OFF, GateConfig
from model.gate_report import State, blocked
from model.store import MemorySnapshotStore
from tests.model.gate_stream import (
    GATE,
    Running,
    Spoil,
    ahead,
    bots,
    constant,
    fewer,
    flipped,
    messages,
)

HEALTHY_S = 260
WARM_S = 60
"""Seconds until the model is warm: `GATE.warm_up_rows`."""
Tensors = Mapping[str, torch.Tensor]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Running:
    """A trainer that has published healthy versions every second, and has a checkpoint."""
    torch.set_num_threads(1)
    running = Running(store=MemorySnapshotStore(), folder=tmp_path_factory.mktemp("healthy"))
    running.feed(messages(1), HEALTHY_S)
    assert running.trainer.checkpoint() is not None
    return running


def test_two_hundred_healthy_publishes_are_blocked_once_at_most(healthy: Running) -> None:
    stats = healthy.trainer.publish_stats
    assert HEALTHY_S - WARM_S >= 200
    assert stats.snapshots.total() >= HEALTHY_S - 1
    assert stats.failures.total() <= 1
    windows = healthy.trainer.gate.stats.windows
    assert windows["block"] == 0 and windows["pass"] >= 15
    assert healthy.trainer.gate.state == "pass"


def test_a_new_model_begins_unjudged_and_says_so() -> None:
    running = Running(store=MemorySnapshotStore())
    running.feed(messages(2), 3)
    assert running.trainer.publish_stats.snapshots.total() == 3
    assert {f.state for f in running.trainer.gate.findings if f.check == "psi"} == {"not_judged"}
    assert running.trainer.gate.window_state == "not_judged"


def not_a_number(tensors: Tensors) -> dict[str, torch.Tensor]:
    rows = tensors["rows.weights"].clone()
    rows[len(rows) // 2, 0] = torch.nan
    return {**tensors, "rows.weights": rows}


def scaled_tower(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The logits of home three times what they were."""
    return {name: t * 3 if name in (f"dense.towers.0.{p}.1" for p in ("weights", "biases")) else t
            for name, t in tensors.items()}  # fmt: skip


def shuffled_ids(tensors: Tensors) -> dict[str, torch.Tensor]:
    order = torch.randperm(len(tensors["rows.keys"]), generator=torch.Generator().manual_seed(0))
    return {**tensors, "rows.weights": tensors["rows.weights"][order]}


@pytest.mark.parametrize(
    ("check", "fault", "export"),
    [("finite", not_a_number, "delta"), ("psi", scaled_tower, "delta"), ("churn", shuffled_ids, "full")],
)
def test_a_fault_of_a_version_is_blocked_by_its_check(
    healthy: Running, monkeypatch: pytest.MonkeyPatch, check: str, fault: Callable[[Tensors], Tensors], export: str
) -> None:
    trainer = healthy.trainer
    store = trainer._parts.store
    assert store is not None
    trainer.train_message(next(messages(9, first=healthy.offset)), 0, healthy.offset)
    trainer.flush()
    healthy.offset += 1
    model, live = trainer.learner.trained, store.pointer()
    full, delta = model.serving_full, model.serving_delta
    monkeypatch.setattr(trainer._publishing.publisher, "_deltas_since_full", 1_000 if export == "full" else 0)
    monkeypatch.setattr(model, "serving_full", lambda: fault(full()))
    monkeypatch.setattr(model, "serving_delta", lambda: fault(delta()))
    rows = trainer.stats.examples
    assert trainer.publish() is None, "it must not go live"
    assert check in {finding.check for finding in blocked(trainer.gate.findings)}
    rejection = store.rejected()[0]
    assert rejection.findings == trainer.gate.findings + trainer.gate.window_findings
    assert f"{check}: " in rejection.reason
    assert store.pointer() == live
    monkeypatch.undo()
    after = trainer.publish()
    assert after is not None and after.version > rejection.manifest.version and trainer.stats.examples == rows


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        ("base", {"base_version": 1, "kind": "delta"}),
        ("schema", {"schema_hash": "another", "kind": "full", "base_version": 0}),
        ("version", {"version": 1, "kind": "full", "base_version": 0}),
    ],
)
def test_a_manifest_that_does_not_fit_is_blocked(healthy: Running, check: str, changes: dict[str, object]) -> None:
    store = healthy.trainer._parts.store
    assert store is not None
    live = store.pointer()
    assert live is not None
    candidate = msgspec.structs.replace(live, **({"version": healthy.trainer.gate.level0.last_version + 1} | changes))
    findings = healthy.trainer.gate.level0.judge(
        candidate, healthy.trainer.learner.trained.serving_full(), num_rows=1, rows_learned=10**6
    )
    assert [finding.check for finding in blocked(findings)] == [check]


def resumed(healthy: Running, folder: Path, **changes: object) -> Running:
    """A new process that goes on from the checkpoint; it blocks and does not roll back."""
    source = healthy.trainer._parts.checkpoint_dir
    assert source is not None
    shutil.copytree(source, folder / "checkpoints")
    gate = replace(GATE, **({"on_failure": "block"} | changes))  # type: ignore[arg-type]  # any field
    running = Running(store=MemorySnapshotStore(), folder=folder / "checkpoints", gate=gate)
    assert running.trainer.resume()
    running.clock.ms, running.offset = healthy.clock.ms, healthy.offset
    return running


@pytest.mark.parametrize(
    ("checks", "spoil"),
    [
        ({"label_rate"}, flipped(0.3)),
        ({"label_rate"}, fewer(0.5)),
        ({"label_rate", "users"}, bots(0.3)),
        ({"feature_psi"}, constant("user", "city", "lyon")),
        ({"feature_psi"}, constant("item", "category", "c1")),
        ({"missing"}, constant("context", "device", None)),
        ({"clock_ahead"}, ahead(73 * 365 * 86_400_000)),
    ],
    ids=["flips", "halved", "bots", "constant", "constant_item", "missing", "ahead"],
)
def test_a_fault_of_the_data_is_blocked_by_its_check_within_one_window(
    healthy: Running, tmp_path: Path, checks: set[str], spoil: Spoil
) -> None:
    running = resumed(healthy, tmp_path)
    running.feed(messages(7, spoil, first=healthy.offset), 17)
    gate = running.trainer.gate
    found = {finding.check for finding in blocked(gate.window_findings)}
    assert checks <= found, gate.window_findings
    live = running.trainer.publish_stats.version
    running.feed(messages(7, spoil, first=running.offset), 4)
    assert running.trainer.publish_stats.version == live, "nothing goes live any more"
    assert running.trainer.publish_stats.failures["rejected"] == GATE.freeze_after
    assert gate.is_frozen


def says(running: Running) -> State:
    return running.trainer.gate.window_state


def test_a_window_in_order_thaws_the_gate(healthy: Running, tmp_path: Path) -> None:
    running = resumed(healthy, tmp_path)
    running.feed(messages(7, constant("context", "device", None), first=healthy.offset), 16)
    assert says(running) == "block"
    live = running.trainer.publish_stats.version
    running.feed(messages(7, first=running.offset), 22)
    assert says(running) == "pass"
    assert not running.trainer.gate.is_frozen
    assert running.trainer.publish_stats.version > live


def test_a_shift_that_lasts_is_the_new_normal(healthy: Running, tmp_path: Path) -> None:
    running = resumed(healthy, tmp_path, adopt_ms=15_000)
    stream = messages(7, constant("user", "city", "lyon"), first=healthy.offset)
    running.feed(stream, 12)
    assert says(running) == "block"
    running.feed(stream, 25)
    assert says(running) != "block"


def test_a_check_that_is_off_says_nothing(healthy: Running, tmp_path: Path) -> None:
    running = resumed(healthy, tmp_path, missing_points=None, feature_psi=None)
    running.feed(messages(7, constant("context", "device", None), first=healthy.offset), 12)
    assert running.trainer.gate.stats.blocks == {}
    assert OFF.psi is None and OFF.ne is None


def test_a_model_nobody_could_judge_is_not_published() -> None:
    running = Running(store=MemorySnapshotStore(), gate=replace(GATE, max_unjudged_ms=5_000, warm_up_rows=10**9))
    running.feed(messages(2), 8)
    assert running.trainer.gate.stats.blocks["unjudged"] >= 2
    assert running.trainer.publish_stats.snapshots.total() == 6


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("warm_up_rows", -1, "at least 0"),
        ("window_ms", 0, "at least 1"),
        ("psi", 0.0, "above 0"),
        ("label_rate_ratio", 1.0, "above 1"),
        ("churn_most", 1.5, "from 0 to 1"),
        ("ne", float("nan"), "a finite number"),
        ("on_failure", "shrug", "is not one of block, rollback"),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(name: str, value: object, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: .*{allowed}"):
        GateConfig(**{name: value})  # type: ignore[arg-type]  # wrong on purpose


def test_the_probe_set_costs_the_trainer_no_bits() -> None:
    ours, theirs = Running(store=MemorySnapshotStore()), Running(store=MemorySnapshotStore(), gate=OFF)
    for running in (ours, theirs):
        running.feed(messages(3), 6)
    one, two = (running.trainer.learner.trained.state() for running in (ours, theirs))
    assert all(torch.equal(one[name], two[name]) for name in one)
