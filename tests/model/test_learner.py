"""The learner: score before learn, guard, resume, determinism, convergence; and the serving model it exports."""

import dataclasses
import threading

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import ModelConfig
from model.embedding_config import EmbeddingConfig
from model.features import EncodedBatch, EncodingConfig, RowColumns
from model.labels import LabelBatch
from model.learner import Learner
from model.losses import LossConfig
from model.optim import OptimConfig
from model.serving import ServingModel
from model.step_report import StepReport
from stream.schema import FeatureConfig, FeaturesConfig, SchemaConfig
from tests.model.worlds import SCHEMA, columns, labels, tiny_config

torch.set_num_threads(1)


def learner(seed: int = 0, **changes: object) -> Learner:
    return Learner(SCHEMA, tiny_config(**changes), seed)


def drawn(model: Learner, rng: np.random.Generator, num_rows: int = 24) -> tuple[EncodedBatch, LabelBatch]:
    return model.encode(columns(rng, 6, num_rows)), labels(rng, num_rows)


def train(model: Learner, rng: np.random.Generator, num_steps: int) -> list[StepReport]:
    return [model.learn(*drawn(model, rng)) for _ in range(num_steps)]


def snapshot(model: Learner) -> dict[str, list[object]]:
    state = {name: tensor.tolist() for name, tensor in model.trained.state().items()}
    return state | {"meta": [model.trained.state_meta()]}


def probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))


def test_scores_are_the_logits_the_step_starts_from_bit_for_bit() -> None:
    model, rng = learner(), np.random.default_rng(0)
    for _ in range(8):
        batch, given_labels = drawn(model, rng)
        scored = model.score(batch)
        assert scored.shape == (24, 2) and scored.dtype == np.float32
        assert np.array_equal(scored, model.learn(batch, given_labels).logits_BT)
        assert not np.array_equal(scored, model.score(batch))


def test_scoring_changes_nothing_and_labels_do_not_reach_the_score() -> None:
    model, rng = learner(), np.random.default_rng(0)
    train(model, rng, 3)
    before = snapshot(model)
    batch, given_labels = drawn(model, rng)
    model.score(batch)
    assert snapshot(model) == before
    flipped = dataclasses.replace(given_labels, label_BT=1 - given_labels.label_BT)
    twin = learner()
    twin.trained.load_state(model.trained.state(), model.trained.state_meta())
    a, b = model.learn(batch, given_labels), twin.learn(batch, flipped)
    assert np.array_equal(a.logits_BT, b.logits_BT) and snapshot(model) != snapshot(twin)


def test_rows_come_back_in_the_order_they_were_given() -> None:
    model, rng = learner(), np.random.default_rng(0)
    train(model, rng, 3)
    batch, _ = drawn(model, rng)
    order = rng.permutation(24)
    assert np.allclose(model.score(batch.take(order)), model.score(batch)[order], atol=1e-6)
    for b in range(4):
        assert np.allclose(model.score(batch.take(slice(b, b + 1))), model.score(batch)[b : b + 1], atol=1e-6)
    assert model.score(batch.take(slice(0, 0))).shape == (0, 2)


BAD: dict[str, dict[str, float]] = {"label_BT": {"nan": np.nan}, "weight_BT": {"nan": np.nan, "-inf": -np.inf}}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in BAD.items() for v in values.values()])
def test_a_batch_that_is_not_finite_changes_nothing(field: str, value: float) -> None:
    model, twin, rng = learner(), learner(), np.random.default_rng(0)
    batches = [drawn(model, rng) for _ in range(4)]
    for batch, given_labels in batches[:2]:
        model.learn(batch, given_labels)
        twin.learn(batch, given_labels)
    batch, given_labels = batches[2]
    broken = getattr(given_labels, field).copy()
    broken[given_labels.mask_BT.nonzero()[0][0], given_labels.mask_BT.nonzero()[1][0]] = value
    before = snapshot(model)
    report = model.learn(batch, dataclasses.replace(given_labels, **{field: broken}))
    assert report.skipped == "loss" and report.rows_admitted == 0 and snapshot(model) == before
    for one in (model, twin):
        one.learn(*batches[3])
    assert snapshot(model) == snapshot(twin)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("logits", "dense.towers.0.biases.0", np.inf),  # the network is broken already
        ("dense_gradient", "dense.shared.experts.in_weight", 1e30),  # finite logits, but a norm that overflows
    ],
)
def test_what_is_not_finite_is_named(part: str, name: str, value: float) -> None:
    model, rng = learner(), np.random.default_rng(0)
    train(model, rng, 2)
    state = model.trained.state()
    state[name] = torch.full_like(state[name], value)
    if part == "dense_gradient":  # hidden units of 1e30 behind second layers of zero: nothing of them in the logits
        state["dense.shared.experts.out_weight"] *= 0.0
        state[name][::2] *= -1.0  # whatever the sign of x, half of them are not cut off
    model.trained.load_state(state, model.trained.state_meta())
    before = snapshot(model)
    assert model.learn(*drawn(model, rng)).skipped == part and snapshot(model) == before


def test_masked_cells_may_hold_nan() -> None:
    model, twin, rng = learner(), learner(), np.random.default_rng(0)
    batch, given_labels = drawn(model, rng)
    holes = np.where(given_labels.mask_BT, given_labels.label_BT, np.nan).astype(np.float32)
    model.learn(batch, given_labels)
    assert twin.learn(batch, dataclasses.replace(given_labels, label_BT=holes)).skipped is None
    assert snapshot(model) == snapshot(twin)


def test_an_absent_scenario_keeps_its_heads_and_moments_bit_for_bit() -> None:
    model, rng = learner(), np.random.default_rng(0)
    train(model, rng, 5)
    before = model.trained.state()
    batch, given_labels = drawn(model, rng)
    present = np.flatnonzero(batch.scenario_B != 0)
    given_labels = given_labels.take(present)
    model.learn(batch.take(present), given_labels)
    after = model.trained.state()
    heads = [name for name in before if ".gates.0." in name or ".towers.0." in name]
    assert len(heads) == 4 * (4 + 4)
    assert all(torch.equal(before[name], after[name]) for name in heads)
    assert not torch.equal(before["dense.gates.1.experts.in_weight"], after["dense.gates.1.experts.in_weight"])


def test_resume_is_bit_exact() -> None:
    model, rng = learner(), np.random.default_rng(0)
    batches = [drawn(model, rng) for _ in range(12)]
    twin = learner()
    for number, (batch, given_labels) in enumerate(batches):
        if number == 6:
            model.trained.table.evict(model.trained.state()["rows.ids.key_of_row"].numpy()[-3:])
            twin.trained.table.evict(twin.trained.state()["rows.ids.key_of_row"].numpy()[-3:])
            state, meta, twin = twin.trained.state(), twin.trained.state_meta(), learner(seed=99)
            twin.trained.load_state(state, meta)
        model.learn(batch, given_labels)
        twin.learn(batch, given_labels)
    assert snapshot(model) == snapshot(twin)


def test_a_state_is_a_copy() -> None:
    model, rng = learner(), np.random.default_rng(0)
    train(model, rng, 3)
    state = model.trained.state()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    train(model, rng, 3)
    assert all(torch.equal(kept[name], state[name]) for name in kept)


def test_the_seed_decides_and_nothing_else() -> None:
    torch.manual_seed(1)
    first = snapshot(learner(seed=3))
    torch.manual_seed(2)
    assert snapshot(learner(seed=3)) == first != snapshot(learner(seed=4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": EmbeddingConfig(width=5)}, "dense.*the state has .*, this configuration needs|in_weight"),
        ({"preset": "small", "hinet": None}, "this configuration needs"),
    ],
)
def test_a_state_of_another_shape_is_refused(changes: dict[str, object], message: str) -> None:
    model, other = learner(), learner(**changes)
    before = snapshot(other)
    with pytest.raises(ValueError, match=message):
        other.trained.load_state(model.trained.state(), model.trained.state_meta())
    with pytest.raises(ValueError, match="format: 0 is not allowed; 6"):
        other.trained.load_state(other.trained.state(), {"format": 0})
    assert snapshot(other) == before


def test_clipping_is_reported_and_bounds_the_step() -> None:
    rng = np.random.default_rng(0)
    model = learner(optim=OptimConfig(dense_clip=1e-4, row_clip=1e-4))
    report = train(model, rng, 1)[0]
    assert report.dense_clipped and report.rows_clipped > 0 and report.grad_norm > 1e-4
    assert torch.stack([g.norm() for g in model.trained.state()["rows.accumulator"]]).sqrt().max() <= 1e-4
    loose = train(learner(), np.random.default_rng(0), 1)[0]
    assert not loose.dense_clipped and loose.rows_clipped == 0


def test_weights_above_the_cap_are_counted() -> None:
    model, rng = learner(loss=LossConfig(max_example_weight=1.0)), np.random.default_rng(0)
    batch, given_labels = drawn(model, rng)
    expected = int((given_labels.weight_BT[given_labels.mask_BT] > 1.0).sum())
    assert model.learn(batch, given_labels).weights_capped == expected > 0


def test_task_weights_are_for_tasks() -> None:
    with pytest.raises(ValueError, match=r"task_weights: \['like'\] are not tasks; click, order"):
        learner(loss=LossConfig(task_weights={"like": 1.0}))
    model, rng = learner(loss=LossConfig(task_weights={"click": 0.0})), np.random.default_rng(0)
    before = model.trained.state()
    train(model, rng, 1)
    tower = "dense.towers.0.weights.1"
    changed = (before[tower] != model.trained.state()[tower]).flatten(1).any(dim=1)
    assert changed.tolist() == [False, True]


# What follows: serving.


def served(model: Learner) -> ServingModel:
    return ServingModel.from_full(SCHEMA, model.config, model.trained.serving_full())


def test_serving_gives_the_learners_probabilities() -> None:
    model, rng = learner(), np.random.default_rng(0)
    train(model, rng, 10)
    serving = served(model)
    for num_requests in (1, 20):
        batch = serving.encode(columns(rng, num_requests, 40, num_ids=60))
        assert np.allclose(serving.score(batch), probabilities(model.score(batch)), atol=1e-6)
        assert serving.score(batch).dtype == np.float32
    assert serving.score(batch.take(slice(0, 0))).shape == (0, 2)


def test_nothing_of_the_optimiser_leaves() -> None:
    model = learner()
    train(model, np.random.default_rng(0), 2)
    names = {name for name in model.trained.serving_full() if not name.startswith("dense.")}
    assert names == {"rows.keys", "rows.weights", "rows.evicted", "rows.reserved"}


OPS = st.lists(st.sampled_from(["learn", "evict", "export", "promote", "full"]), min_size=4, max_size=14)


@settings(max_examples=25, deadline=None)
@given(ops=OPS, seed=st.integers(0, 1_000))
def test_a_full_export_and_its_deltas_are_a_later_full_export(ops: list[str], seed: int) -> None:
    """Any interleaving; an export whose gate failed is never a base, and learning may go on before the promotion."""
    model, rng = learner(), np.random.default_rng(seed)
    train(model, rng, 1)
    serving, candidate = served(model), None
    model.trained.mark_promoted()
    for op in [*ops, "export", "promote"]:
        if op == "learn":
            train(model, rng, 1)
        elif op == "evict":
            keys = model.trained.serving_full()["rows.keys"].numpy() if candidate is None else np.array([], np.int64)
            model.trained.table.evict(rng.choice(keys, min(len(keys), 4), replace=False))
        elif op == "export":
            former, candidate = contents(serving), serving.apply_delta(model.trained.serving_delta())
            assert contents(serving) == former
        elif op == "full":
            candidate = served(model)
        elif candidate is not None:
            serving, candidate = candidate, None
            model.trained.mark_promoted()
    assert contents(serving) == contents(served(model))


def contents(serving: ServingModel) -> dict[object, object]:
    """Returns all rows by key, the reserved ones, and the network's parameters."""
    exported = serving.tensors()
    rows = dict(zip(exported["rows.keys"].tolist(), exported["rows.weights"].tolist(), strict=True))
    return rows | {name: exported[name].tolist() for name in exported if name not in ("rows.keys", "rows.weights")}


@pytest.mark.parametrize("name", ["dense.shared.experts.in_bias", "rows.reserved", "rows.weights"])
def test_tensors_that_do_not_fit_are_refused(name: str) -> None:
    model = learner()
    train(model, np.random.default_rng(0), 2)
    serving, tensors = served(model), model.trained.serving_full()
    with pytest.raises(ValueError, match=name.removeprefix("dense.") + ": the state has nothing"):
        serving.apply_delta({one: tensor for one, tensor in tensors.items() if one != name})
    with pytest.raises(ValueError, match=name.removeprefix("dense.")):
        serving.apply_delta(tensors | {name: torch.zeros(7, 7)})


def test_many_threads_score_at_once() -> None:
    model, rng = learner(), np.random.default_rng(0)
    train(model, rng, 3)
    serving = served(model)
    given_columns = [columns(rng, 1, 30) for _ in range(4)]
    expected = [serving.score(serving.encode(one)) for one in given_columns]
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(20):
            if not np.array_equal(serving.score(serving.encode(given_columns[n])), expected[n]):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_custom_widths_go_with_the_custom_preset_only() -> None:
    with pytest.raises(ValueError, match="hinet: absent with architecture: hinet, preset: custom is not allowed"):
        ModelConfig(preset="custom")
    with pytest.raises(ValueError, match="hinet: given with architecture: hinet, preset: small is not allowed"):
        ModelConfig(preset="small", hinet=tiny_config().hinet)
    assert ModelConfig(preset="published").network.num_shared_experts == 5


def test_it_learns_a_world_with_known_probabilities() -> None:
    """Every scenario and task ends below the entropy of its base rate, progressively."""
    features = FeaturesConfig(item={"taste": FeatureConfig(kind="categorical")})
    schema = SchemaConfig(scenarios=SCHEMA.scenarios, tasks=SCHEMA.tasks, features=features)
    encoding = EncodingConfig(user_id=False, item_id=False, history_length=0)
    model, rng = Learner(schema, ModelConfig(encoding=encoding), seed=0), np.random.default_rng(0)
    pull = rng.normal(size=(3, 2, 8)) * 1.5
    seen: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float32]]] = []
    on = np.ones((64, 2), bool)
    for _ in range(300):
        taste_B, scenario_B = rng.integers(0, 8, 64), rng.choice(3, 64, p=[0.6, 0.3, 0.1])
        batch = model.encode(
            RowColumns(
                scenario=[schema.scenarios[i] for i in scenario_B],
                user_id=["u"] * 64,
                item_id=["i"] * 64,
                request_index_B=np.arange(64),
                item={"taste": taste_B.tolist()},
            )
        )
        label_BT = (rng.random((64, 2)) < probabilities(pull[scenario_B, :, taste_B] - 1.0)).astype(np.float32)
        report = model.learn(
            batch, LabelBatch(label_BT=label_BT, mask_BT=on, weight_BT=on.astype(np.float32), first_BT=on)
        )
        seen.append((scenario_B, probabilities(report.logits_BT), label_BT))
    scenario, p, y = (np.concatenate(parts)[-9_600:] for parts in zip(*seen, strict=True))
    for i in range(3):
        for j in range(2):
            pi, yi = p[scenario == i, j], y[scenario == i, j]
            cross_entropy = -np.mean(yi * np.log(pi) + (1 - yi) * np.log(1 - pi))
            base = yi.mean()
            assert cross_entropy < 0.97 * -(base * np.log(base) + (1 - base) * np.log(1 - base))


def test_logits_start_near_the_logit_of_the_prior() -> None:
    batch, _ = drawn(learner(), np.random.default_rng(0))
    logits_BT = learner(priors={"click": 0.01}).score(batch)
    assert np.abs(logits_BT[:, 0] - np.log(0.01 / 0.99)).max() < 0.5
    assert np.array_equal(logits_BT[:, 1:], learner().score(batch)[:, 1:])


@pytest.mark.parametrize(
    ("priors", "message"),
    [
        ({"click": 0.0}, "priors.click: 0.0 is not allowed; between 0 and 1"),
        ({"click": 1.0}, "priors.click: 1.0 is not allowed; between 0 and 1"),
        ({"buy": 0.5}, r"priors: \['buy'\] are not tasks"),
    ],
)
def test_a_prior_is_a_probability_of_a_task(priors: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learner(priors=priors)


def test_positives_are_learned_only_after_the_first_negative_of_their_scenario_and_task() -> None:
    model, rng = learner(), np.random.default_rng(0)
    batch, given_labels = drawn(model, rng)
    positives = dataclasses.replace(
        given_labels, label_BT=np.ones_like(given_labels.label_BT), mask_BT=np.ones_like(given_labels.mask_BT)
    )
    before = model.score(batch)
    report = model.learn(batch, positives)
    assert report.positives_held_back == positives.mask_BT.size and report.skipped is None
    assert np.array_equal(model.score(batch), before)
    # One row with negatives opens its scenario for both tasks, and leaves the others closed.
    opened = batch.scenario_B[0]
    one_negative = dataclasses.replace(positives, label_BT=positives.label_BT.copy())
    one_negative.label_BT[0] = 0.0
    report = model.learn(batch, one_negative)
    assert report.positives_held_back == 2 * int((batch.scenario_B != opened).sum())
    assert not np.array_equal(model.score(batch), before)
    resumed = learner()
    resumed.trained.load_state(model.trained.state(), model.trained.state_meta())
    assert resumed.learn(batch, positives).positives_held_back == report.positives_held_back
