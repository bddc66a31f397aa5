"""Every network in the learner: scored before it learns, resumed, served."""

from typing import get_args

import numpy as np
import pytest
import torch

from model.architectures import Architecture
from model.config import ModelConfig
from model.embedding import EmbeddingConfig
from model.features import EncodedBatch
from model.labels import LabelBatch
from model.learner import Learner
from model.serving import ServingModel
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


@architectures
def test_what_is_served_is_what_was_learned(architecture: Architecture) -> None:
    model = learner(architecture)
    for batch, given_labels in batches(model, 3):
        model.learn(batch, given_labels)
    serving = ServingModel.from_full(SCHEMA, config_of(architecture), model.trained.serving_full())
    batch, _ = batches(model, 1, seed=5)[0]
    expected_BT = 1 / (1 + np.exp(-model.score(batch)))
    assert np.allclose(serving.score(batch), expected_BT, rtol=0, atol=1e-6)
