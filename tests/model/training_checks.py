"""What the tests of several parts of the model check about a learner in training in the same way."""

import numpy as np
import torch

from model.config import ModelConfig
from model.learner import Learner
from tests.model.worlds import SCHEMA, columns, labels


def trained_and_resumed(config: ModelConfig, rng: np.random.Generator, *, num_steps: int) -> Learner:
    """Returns a learner after some steps: each reports the score from before, and half of them resumed are the same."""
    learner, twin = (Learner(SCHEMA, config, seed=0) for _ in range(2))
    for step in range(num_steps):
        batch, given_labels = learner.encode(columns(rng, 6, 24)), labels(rng, 24)
        if step == num_steps // 2:
            twin.trained.load_state(learner.trained.state(), learner.trained.state_meta())
        scored = learner.score(batch)
        report = learner.learn(batch, given_labels)
        assert report.skipped is None and np.array_equal(report.logits_BT, scored)
        if step >= num_steps // 2:
            twin.learn(batch, given_labels)
    ours, theirs = learner.trained.state(), twin.trained.state()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    return learner
