"""Rows kept in bfloat16: small updates are not lost, the arithmetic is float32's, resume and serving are exact."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from model.assembly import InputLayout
from model.embedding import EmbeddingTable
from model.embedding_config import EmbeddingConfig
from model.features import EncodingConfig, FeatureEncoder
from model.learner import Learner
from model.optim import OptimConfig
from model.payload_view import view_payload
from model.precision import Precision
from model.ranks import Ranks
from model.score_regularization import ScoreRegularizationConfig
from model.serving import ServingModel
from model.snapshot import encode_payload, first_non_finite
from tests.model import learner_rank_child
from tests.model.thread_ranks import on_ranks
from tests.model.worlds import SCHEMA, columns, labels, tiny_config

BFLOAT16 = EmbeddingConfig(width=4, dtype="bfloat16")


def learner(embedding: EmbeddingConfig = BFLOAT16, **changes: object) -> Learner:
    return Learner(SCHEMA, tiny_config(embedding=embedding, **changes), seed=0)


def train(model: Learner, rng: np.random.Generator, num_steps: int) -> list[np.ndarray]:
    return [model.learn(model.encode(columns(rng, 20, 64)), labels(rng, 64)).logits_BT for _ in range(num_steps)]


def assert_same_state(one: Learner, other: Learner) -> None:
    states = one.trained.state(), other.trained.state()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert tensor.dtype == states[1][name].dtype and torch.equal(tensor, states[1][name]), name


def test_weights_alone_are_bfloat16_and_learning_goes_the_same_way() -> None:
    exact, coarse = learner(EmbeddingConfig(width=4)), learner()
    for theirs, ours in zip(
        train(exact, np.random.default_rng(0), 30), train(coarse, np.random.default_rng(0), 30), strict=True
    ):
        assert np.abs(theirs - ours).max() < 0.05
    state = coarse.trained.state()
    assert [name for name, one in state.items() if one.dtype == torch.bfloat16] == ["rows.weight"]
    assert state["rows.accumulator"].dtype == torch.float32
    weight = exact.trained.state()["rows.weight"]
    difference = torch.linalg.vector_norm(state["rows.weight"].float() - weight)
    assert 0 < difference < 0.05 * torch.linalg.vector_norm(weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_updates_that_are_each_too_small_for_bfloat16_add_up(dtype: Precision) -> None:
    encoder = FeatureEncoder(SCHEMA, EncodingConfig())
    layout = InputLayout(encoder.fields, width=64, interaction=True)
    table = EmbeddingTable(layout, EmbeddingConfig(width=64, dtype=dtype, init_scale=0.05), seed=5)
    batch = encoder.encode_columns(columns(np.random.default_rng(0), 20, 64))
    lookup = table.lookup(batch, np.zeros(64, bool))
    rows, before = torch.from_numpy(lookup.rows_U), lookup.weight_UW
    num_steps = 100
    for _ in range(num_steps):
        lookup = table.lookup(batch, np.zeros(64, bool))
        lookup.accumulator_U.fill_(1.0)  # the rate stays what it is
        table.apply(lookup, torch.full_like(lookup.weight_UW, 1e-3), OptimConfig(row_lr=0.05))
    moved = before - table.weight[rows].float()
    # 100 times 5e-5: nearly every weight of about 0.05 is rounded to itself if it is rounded to the nearest.
    is_too_small = before.abs() > 0.03
    assert 0 == int((before.bfloat16() != (before - 5e-5).bfloat16())[is_too_small].sum()) or dtype == "float32"
    assert moved[is_too_small].mean().item() == pytest.approx(num_steps * 5e-5, rel=0.05)


def test_scores_are_the_logits_the_step_starts_from() -> None:
    model, rng = learner(), np.random.default_rng(0)
    train(model, rng, 5)
    batch, truth = model.encode(columns(rng, 20, 64)), labels(rng, 64)
    assert np.array_equal(model.score(batch), model.learn(batch, truth).logits_BT)


def test_a_resumed_model_ends_with_the_same_bits() -> None:
    whole, first, rng = learner(), learner(), np.random.default_rng(0)
    train(whole, rng, 10)
    train(first, np.random.default_rng(0), 10)
    second = learner()
    second.trained.load_state(load(save(first.trained.state())), first.trained.state_meta())
    again = np.random.default_rng(1)
    train(whole, np.random.default_rng(1), 10)
    train(second, again, 10)
    assert_same_state(whole, second)


def test_a_model_goes_on_with_rows_of_the_other_type() -> None:
    exact, coarse = learner(EmbeddingConfig(width=4)), learner()
    train(exact, np.random.default_rng(0), 5)
    coarse.trained.load_state(exact.trained.state(), exact.trained.state_meta())
    weight = exact.trained.state()["rows.weight"]
    assert torch.equal(coarse.trained.state()["rows.weight"], weight.bfloat16())
    exact.trained.load_state(coarse.trained.state(), coarse.trained.state_meta())
    assert torch.equal(exact.trained.state()["rows.weight"], weight.bfloat16().float())
    assert np.isfinite(train(coarse, np.random.default_rng(1), 2)[-1]).all()


def test_snapshots_are_bfloat16_and_serve_what_the_learner_scores() -> None:
    model, rng = learner(), np.random.default_rng(0)
    train(model, rng, 3)
    full = encode_payload(model.trained.serving_full())
    served = ServingModel.from_full(SCHEMA, model.config, view_payload(full))
    model.trained.mark_promoted()
    train(model, rng, 3)
    delta = encode_payload(model.trained.serving_delta())
    for payload in (full, delta):
        ours, theirs = view_payload(payload), load(payload)
        assert ours.keys() == theirs.keys() and all(torch.equal(one, theirs[name]) for name, one in ours.items())
        assert ours["rows.weights"].dtype == ours["rows.reserved"].dtype == torch.bfloat16
    served = served.apply_delta(view_payload(delta))
    assert served.tensors()["rows.weights"].dtype == torch.bfloat16
    batch = model.encode(columns(rng, 20, 64))
    scored = torch.from_numpy(model.score(batch)).sigmoid().numpy()
    assert np.allclose(served.score(batch), scored, rtol=0, atol=1e-6)


def test_rows_of_the_other_type_are_not_served() -> None:
    model = learner(EmbeddingConfig(width=4))
    config = dataclasses.replace(model.config, embedding=BFLOAT16)
    with pytest.raises(ValueError, match=r"rows\.\w+: the state has torch\.float32, this model needs torch\.bfloat16"):
        ServingModel.from_full(SCHEMA, config, model.trained.serving_full())


def test_what_is_not_finite_is_seen() -> None:
    weights = torch.tensor([[1.0, float("nan")]], dtype=torch.bfloat16)
    assert first_non_finite(view_payload(encode_payload({"rows.weights": weights}))) == "rows.weights"


def test_a_teacher_sees_the_rows_as_they_were() -> None:
    regularization = ScoreRegularizationConfig(teacher="snapshot", min_examples=0, known_ids=(), drift_guard=None)
    model, rng = learner(score_regularization=regularization), np.random.default_rng(0)
    train(model, rng, 3)
    table, batch = model.trained.table, model.encode(columns(rng, 20, 64))
    frozen, before = table.freeze(), table.lookup(batch, np.zeros(64, bool))
    model.trained.take_teacher(1, 1_000)
    model.trained.promote_teacher(1, {})
    train(model, rng, 5)
    old = frozen.rows_of(table.batch_rows(table.lookup(batch, np.zeros(64, bool))), table.layout)
    then = before.weight_UW[torch.from_numpy(before.index_N)]
    assert torch.equal(old.source_VW[torch.from_numpy(old.index_N)], then)
    assert not torch.equal(table.lookup(batch, np.zeros(64, bool)).weight_UW[:4], before.weight_UW[:4])


def test_two_ranks_round_as_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    config = learner_rank_child.CASES["draws"]
    coarse = dataclasses.replace(config, embedding=dataclasses.replace(config.embedding, dtype="bfloat16"))
    monkeypatch.setitem(learner_rank_child.CASES, "draws", coarse)
    monkeypatch.setattr(learner_rank_child, "NUM_STEPS", 10)
    alone = learner_rank_child.run(Ranks.alone(), "draws")
    ranks: list[dict[str, torch.Tensor]] = []
    for found in on_ranks(2, lambda one: learner_rank_child.run(one, "draws")):
        assert not isinstance(found, Exception), found
        ranks.append(found)
    order = torch.argsort(torch.cat([rank["own.keys"] for rank in ranks]))
    weight = torch.cat([rank["own.weight"] for rank in ranks])[order]
    assert weight.dtype == alone["own.weight"].dtype == torch.bfloat16
    # Sums in another order may tip one of the draws; draws of their own would differ in every other weight.
    assert (weight == alone["own.weight"]).float().mean() > 0.99
