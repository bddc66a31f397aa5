"""Products in bfloat16: nearly what float32 gives, with everything that lasts in float32."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model.experts import GatedExperts
from model.inputs import RowInputs
from model.learner import Learner
from model.precision import products_in
from model.seeding import initialise
from model.serving import ServingModel
from tests.model.worlds import SCHEMA, columns, labels, tiny_config


def gradients(precision: str) -> dict[str, Tensor]:
    bank = GatedExperts(32, num_experts=3, num_gates=3, hidden=16, out=8)
    initialise(bank, 0)
    x_BD = torch.randn(64, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with products_in(precision):
        experts_EBd, gate_BG = bank(RowInputs(x_BD))
    (experts_EBd.float().square().sum() + gate_BG.float().square().sum()).backward()
    assert x_BD.grad is not None
    return {"x": x_BD.grad} | {name: one.grad for name, one in bank.named_parameters() if one.grad is not None}


def test_gradients_of_a_bank_are_those_of_float32_to_a_few_percent() -> None:
    exact, coarse = gradients("float32"), gradients("bfloat16")
    assert exact.keys() == coarse.keys() and len(exact) == 5
    for name, grad in exact.items():
        assert coarse[name].dtype == torch.float32
        error = torch.linalg.vector_norm(coarse[name] - grad) / torch.linalg.vector_norm(grad)
        assert 0 < error < 0.03, name


@pytest.mark.parametrize("steps", [1, 30])
def test_learning_goes_the_same_way(steps: int) -> None:
    learners = [Learner(SCHEMA, tiny_config(precision=precision), seed=0) for precision in ("float32", "bfloat16")]
    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows, truth = columns(rng, 20, 64), labels(rng, 64)
        exact, coarse = (learner.learn(learner.encode(rows), truth) for learner in learners)
        assert coarse.made and np.abs(exact.logits_BT - coarse.logits_BT).max() < 0.05
    state = learners[1].trained.state()
    lasting = [one for name, one in state.items() if name.startswith(("dense.", "adam.")) or name == "rows.weight"]
    assert {one.dtype for one in lasting if one.is_floating_point()} == {torch.float32}


def test_serving_gives_what_the_learner_scores() -> None:
    config, rng = tiny_config(precision="bfloat16"), np.random.default_rng(0)
    learner = Learner(SCHEMA, config, seed=0)
    batch = learner.encode(columns(rng, 20, 64))
    learner.learn(batch, labels(rng, 64))
    served = ServingModel.from_full(SCHEMA, config, learner.trained.serving_full()).score(batch)
    scored = torch.from_numpy(learner.score(batch)).sigmoid().numpy()
    assert np.allclose(served, scored, rtol=0, atol=4e-3)  # a sum in another order may round to the next bfloat16
