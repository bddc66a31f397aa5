"""Every network in the learner: scored before it learns, resumed, served."""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from model.architectures import Architecture
from model.config import ModelConfig
from model.embedding_config import EmbeddingConfig
from model.epnet import EPNetConfig
from model.features import EncodedBatch
from model.labels import LabelBatch
from model.learner import Learner
from model.losses import LossConfig
from model.position_bias import PositionBiasConfig
from model.sequence_blocks import SequenceBlocksConfig
from model.serving import ServingModel
from tests.model.test_networks import SEES_OTHERS
from tests.model.worlds import SCHEMA, columns, labels

torch.set_num_threads(1)

architectures = pytest.mark.parametrize("architecture", get_args(Architecture))


def config_of(architecture: Architecture) -> ModelConfig:
    return ModelConfig(architecture=architecture, embedding=EmbeddingConfig(width=4))


def learner(architecture: Architecture, seed: int = 0) -> Learner:
    return Learner(SCHEMA, config_of(architecture), seed)


def batches(model: Learner, num: int, seed: int = 0) -> list[tuple[EncodedBatch, LabelBatch]]:
    rng = np.random.default_rng(seed)
    return [(model.encode(columns(rng, 12, 64)), labels(rng, 64)) for _ in range(num)]


def same_state(one: Learner, other: Learner) -> bool:
    ours, theirs = one.trained.state(), other.trained.state()
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@architectures
def test_a_step_reports_the_scores_from_before_it_and_scoring_changes_nothing(architecture: Architecture) -> None:
    model, twin = learner(architecture), learner(architecture)
    for batch, given_labels in batches(model, 3):
        scored_BT = model.score(batch)
        report = model.learn(batch, given_labels)
        assert report.made and np.allclose(report.logits_BT, scored_BT, rtol=0, atol=1e-5)
        assert not np.array_equal(model.score(batch), scored_BT)
        twin.learn(batch, given_labels)
    assert same_state(model, twin)


@architectures
def test_steps_after_a_resume_are_the_steps_without_it(architecture: Architecture) -> None:
    model, resumed = learner(architecture), learner(architecture, seed=9)
    given = batches(model, 6)
    for batch, given_labels in given[:3]:
        model.learn(batch, given_labels)
    resumed.trained.load_state(model.trained.state(), model.trained.state_meta())
    for batch, given_labels in given[3:]:
        model.learn(batch, given_labels)
        resumed.learn(batch, given_labels)
    assert same_state(model, resumed)


ALL_AROUND = {
    "sequence": SequenceBlocksConfig(),
    "position_bias": PositionBiasConfig(),
    "domain_gate": EPNetConfig(),
    "loss": LossConfig(weighting="uncertainty"),
}


@pytest.mark.parametrize(
    ("architecture", "around"), [*((name, {}) for name in get_args(Architecture)), ("hinet", ALL_AROUND)]
)
@pytest.mark.parametrize("field", ["label_BT", "weight_BT"])
def test_a_batch_that_is_not_finite_leaves_no_trace(
    architecture: Architecture, around: dict[str, Any], field: str
) -> None:
    model, twin = (Learner(SCHEMA, replace(config_of(architecture), **around), 0) for _ in range(2))
    given = batches(model, 3)
    bad, bad_labels = batches(model, 1, seed=7)[0]
    broken_BT = getattr(bad_labels, field).copy()
    broken_BT[bad_labels.mask_BT] = np.nan
    for batch, given_labels in given[:2]:
        model.learn(batch, given_labels)
        twin.learn(batch, given_labels)
    assert model.learn(bad, replace(bad_labels, **{field: broken_BT})).skipped == "loss"
    assert same_state(model, twin)
    for one in (model, twin):
        assert one.learn(*given[2]).made
    assert same_state(model, twin) and np.array_equal(model.score(bad), twin.score(bad))


@architectures
def test_a_batch_of_one_scenario_leaves_the_private_part_of_the_others_alone(architecture: Architecture) -> None:
    model = learner(architecture)
    for batch, given_labels in batches(model, 2):
        model.learn(batch, given_labels)
    net, before = model.trained.net, model.trained.state()
    rows = np.flatnonzero(batch.scenario_B == 0)
    assert model.learn(batch.take(rows), given_labels.take(rows)).made
    name_of = {module: name for name, module in net.named_modules()}
    seen = SEES_OTHERS.get(architecture, set())
    private = [f"{name_of[one]}.1." for one in net.scenario_lists() if name_of[one] not in seen]
    after = model.trained.state()
    names = [name for name in after if any(f".{part}" in name for part in private)]
    assert names and all(torch.equal(after[name], before[name]) for name in names)


@architectures
def test_what_is_served_is_what_was_learned(architecture: Architecture) -> None:
    model = learner(architecture)
    for batch, given_labels in batches(model, 3):
        model.learn(batch, given_labels)
    serving = ServingModel.from_full(SCHEMA, config_of(architecture), model.trained.serving_full())
    batch, _ = batches(model, 1, seed=5)[0]
    expected_BT = 1 / (1 + np.exp(-model.score(batch)))
    assert np.allclose(serving.score(batch), expected_BT, rtol=0, atol=1e-6)
