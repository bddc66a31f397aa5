"""CPU and CUDA: the same rows, the same draws, nearly the same numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.architectures import NETWORKS
from model.device import device_of
from model.learner import Learner
from model.rounding import rounded_by_chance
from tests.model.worlds import SCHEMA, columns, labels, tiny_config

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


def test_auto_takes_what_there_is() -> None:
    assert device_of("cpu").type == "cpu"
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_device_is_named() -> None:
    with pytest.raises(ValueError, match="device: cuda is not allowed on this machine, it has no CUDA device"):
        device_of("cuda")


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("architecture", NETWORKS)
def test_learning_on_cuda_is_learning_on_the_cpu(architecture: str) -> None:
    config = replace(tiny_config(), architecture=architecture, preset="small", hinet=None)
    learners = [Learner(SCHEMA, config, seed=0, device=torch.device(name)) for name in ("cpu", "cuda")]
    rng = np.random.default_rng(0)
    for _ in range(10):
        rows, truth = columns(rng, 20, 64), labels(rng, 64)
        ours, theirs = (learner.learn(learner.encode(rows), truth) for learner in learners)
        assert ours.made and theirs.made
        assert np.allclose(ours.logits_BT, theirs.logits_BT, rtol=0, atol=2e-3)
        assert (ours.rows_touched, ours.rows_admitted) == (theirs.rows_touched, theirs.rows_admitted)
    states = [learner.trained.state() for learner in learners]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert states[1][name].device.type == "cpu"
        if name.startswith("rows.ids."):
            assert torch.equal(tensor, states[1][name]), name


@pytest.mark.gpu
@cuda
def test_a_model_goes_on_on_another_device() -> None:
    rng = np.random.default_rng(0)
    first = Learner(SCHEMA, tiny_config(), seed=0, device=torch.device("cuda"))
    rows, truth = columns(rng, 20, 64), labels(rng, 64)
    first.learn(first.encode(rows), truth)
    second = Learner(SCHEMA, tiny_config(), seed=1)
    second.trained.load_state(first.trained.state(), first.trained.state_meta())
    scores = [learner.score(learner.encode(rows)) for learner in (first, second)]
    assert np.allclose(*scores, rtol=0, atol=1e-4)
    assert second.learn(second.encode(rows), truth).made


@pytest.mark.gpu
@cuda
def test_rows_are_rounded_to_the_same_bits_on_any_device() -> None:
    weight, key = torch.randn(1_000, 16), torch.randint(-(2**62), 2**62, (1_000,))
    rounded = rounded_by_chance(weight, key, "0/1")
    assert torch.equal(rounded_by_chance(weight.cuda(), key.cuda(), "0/1").cpu(), rounded)
