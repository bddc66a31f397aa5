"""Embedding rows: assembly against plain loops, admission, reuse, row-wise Adagrad, and what changed since."""

import numpy as np
import pytest
import torch

from model.admission import AdmissionConfig
from model.assembly import InputLayout
from model.embedding import EmbeddingTable
from model.embedding_config import EmbeddingConfig
from model.features import EncodedBatch, EncodingConfig, FeatureEncoder, RowColumns
from model.hashing import MISSING_KEY, value_key
from model.inputs import RowInputs
from model.optim import OptimConfig, rowwise_adagrad
from stream.schema import FeatureConfig, FeaturesConfig, SchemaConfig
from tests.model.worlds import SCHEMA, columns

torch.set_num_threads(1)
ADMISSION = AdmissionConfig(counter_bits=14)


def made(
    encoding: EncodingConfig | None = None, schema: SchemaConfig = SCHEMA
) -> tuple[FeatureEncoder, EmbeddingTable]:
    encoding = encoding or EncodingConfig()
    encoder = FeatureEncoder(schema, encoding)
    layout = InputLayout(encoder.fields, width=3, interaction=encoding.history_interaction)
    return encoder, EmbeddingTable(layout, EmbeddingConfig(width=3, admission=ADMISSION), seed=5)


def whole(x: RowInputs, width: int) -> torch.Tensor:
    """Returns the input rows, by an identity layer."""
    return x.linear(torch.eye(width), torch.zeros(width))


def step(table: EmbeddingTable, batch: EncodedBatch, grad: float = 1.0, *, first: bool = True) -> None:
    lookup = table.lookup(batch, np.full(batch.num_rows, first))
    table.apply(lookup, torch.full_like(lookup.weight_UW, grad), OptimConfig())


def items(encoder: FeatureEncoder, *ids: str) -> EncodedBatch:
    """Returns rows of one request that differ in the item only."""
    return encoder.encode_columns(
        RowColumns(scenario=["home"], user_id=["u"], item_id=ids, request_index_B=np.zeros(len(ids), np.int64))
    )


def has_row(table: EmbeddingTable, item: str) -> bool:
    return bool(table.ids.lookup(np.array([value_key("item_id", item)]))[0] >= 0)


def row_of(table: EmbeddingTable, item: str) -> torch.Tensor:
    return table.weight[table.ids.lookup(np.array([value_key("item_id", item)]))[0]]


@pytest.mark.parametrize("num_requests", [1, 4, 12])
def test_inputs_equal_a_plain_loop(num_requests: int) -> None:
    encoder, table = made()
    rng = np.random.default_rng(num_requests)
    for _ in range(3):
        step(table, encoder.encode_columns(columns(rng, 6, 20)), grad=0.1)
    batch, layout = encoder.encode_columns(columns(rng, num_requests, 12)), table.layout
    rows_N = layout.rows(batch, layout.flat_keys(batch), table.ids)
    ours = whole(layout.inputs(table.weight, torch.from_numpy(rows_N), batch), layout.width * len(layout.blocks))

    def vector(field: str, keys: np.ndarray) -> torch.Tensor:
        names = [one.name for one in encoder.fields]
        default, missing = names.index("item_id" if field == "history_item" else field), names.index(field)
        found = []
        for key in keys.tolist():
            row = table.ids.lookup(np.array([key]))[0]
            row = 2 * missing + 1 if key == MISSING_KEY else 2 * default if row < 0 else row
            found.append(table.weight[row])
        return torch.stack(found).mean(dim=0)

    for b in range(batch.num_rows):
        r, parts, pooled, item = batch.request_index_B[b], [], None, None
        blocks = {("request", False): iter(batch.request_keys_FR), ("item", False): iter(batch.item_keys_FB)}
        lists = {("request", True): iter(batch.request_lists), ("item", True): iter(batch.item_lists)}
        for one in encoder.fields:
            entry = r if one.side == "request" else b
            block = next((blocks | lists)[one.side, one.many])
            keys = block.take(np.array([entry])).keys_N if one.many else block[entry : entry + 1]
            parts.append(vector(one.name, keys))
            pooled = parts[-1] if one.name == "history_item" else pooled
            item = parts[-1] if one.name == "item_id" else item
        parts.append(pooled * item)
        assert torch.allclose(ours[b], torch.cat(parts), rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", ["user", "item"])
def test_a_side_may_have_no_field(side: str) -> None:
    schema = SchemaConfig(
        scenarios=("home",),
        tasks=SCHEMA.tasks,
        features=FeaturesConfig(**{side: {"f": FeatureConfig(kind="categorical")}}),
    )
    encoder, table = made(EncodingConfig(user_id=False, item_id=False, history_length=0), schema)
    layout = table.layout
    for batch in (items(encoder, "a", "b", "c"), items(encoder)):
        index = torch.from_numpy(layout.rows(batch, layout.flat_keys(batch), table.ids))
        assert whole(layout.inputs(table.weight, index, batch), layout.width * len(layout.blocks)).shape == (
            batch.num_rows,
            3,
        )


def test_an_item_is_admitted_with_its_third_first_emission() -> None:
    encoder, table = made()
    step(table, items(encoder, "a"))
    step(table, items(encoder, "a"), first=False)
    step(table, items(encoder, "a", "b"))
    assert not has_row(table, "a") and not has_row(table, "b")
    step(table, items(encoder, "a"))
    assert has_row(table, "a") and not has_row(table, "b")
    step(table, items(encoder, "b", "b", "c", "c", "c"))
    assert has_row(table, "b") and has_row(table, "c")
    assert table.counters["item_id"].admissions == table.counters["item_id"].rows == 3


def test_only_a_lookup_that_is_applied_changes_anything() -> None:
    encoder, table = made()
    step(table, items(encoder, "a", "a"))
    before = table.state()
    table.lookup(items(encoder, "a", "b", "b", "b"), np.ones(4, bool))
    after = table.state()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_new_row_is_its_default_row_and_steps_alone() -> None:
    encoder, table = made()
    step(table, items(encoder, "x"), grad=0.3)
    default = 2 * [one.name for one in encoder.fields].index("item_id")
    batch = items(encoder, "a", "a", "a", "y")
    lookup = table.lookup(batch, np.ones(4, bool))
    values = lookup.weight_UW[torch.from_numpy(lookup.index_N)]
    index = torch.from_numpy(table.layout.rows(batch, table.layout.flat_keys(batch), table.ids))
    assert torch.equal(values, table.weight[index])
    former, first_new = table.weight[default].clone(), table.ids.num_rows
    grad_UW = torch.from_numpy(lookup.rows_U >= first_new).float()[:, None].expand(-1, 3)
    table.apply(lookup, grad_UW, OptimConfig(row_lr=0.5))
    assert torch.equal(table.weight[default], former)
    assert torch.allclose(row_of(table, "a"), former - 0.5)


def test_history_finds_the_items_row_but_admits_none() -> None:
    encoder, table = made()
    rng = np.random.default_rng(0)
    for _ in range(4):
        step(table, encoder.encode_columns(columns(rng, 40, 41, num_ids=1_000)))
    seen = {key for key in table.ids.items()[0].tolist()}
    admitted_fields = {one.name for one in encoder.fields if table.counters[one.name].admissions}
    assert "history_item" not in admitted_fields and "history_action" in admitted_fields
    assert value_key("history_action", "click") in seen


def test_a_reused_row_starts_afresh() -> None:
    encoder, table = made()
    for _ in range(3):
        step(table, items(encoder, "a", "a", "a"), grad=2.0)
    row = int(table.ids.lookup(np.array([value_key("item_id", "a")]))[0])
    assert table.evict(np.array([value_key("item_id", "a"), 12345])) == 1 and not has_row(table, "a")
    default = 2 * [one.name for one in encoder.fields].index("item_id")
    lookup = table.lookup(items(encoder, "b", "b", "b"), np.ones(3, bool))
    table.apply(lookup, torch.zeros_like(lookup.weight_UW), OptimConfig())
    state = table.state()
    assert int(table.ids.lookup(np.array([value_key("item_id", "b")]))[0]) == row
    assert torch.equal(state["weight"][row], state["weight"][default])
    assert state["accumulator"][row] == 0
    assert (table.counters["item_id"].evictions.total(), table.counters["item_id"].rows) == (1, 1)


def test_adagrad_equals_a_dense_reference_with_duplicates_in_the_batch() -> None:
    encoder, table = made()
    rng, accumulators, weights = np.random.default_rng(3), {}, {}
    optim = OptimConfig(row_lr=0.1, row_eps=1e-6)
    for _ in range(6):
        batch = encoder.encode_columns(columns(rng, 5, 25, num_ids=6))
        lookup = table.lookup(batch, np.ones(25, bool))
        leaf = lookup.weight_UW.clone().requires_grad_()
        coefficient_N = torch.from_numpy(rng.normal(size=(len(lookup.index_N), 3)).astype(np.float32))
        (leaf[torch.from_numpy(lookup.index_N)] * coefficient_N).sum().backward()
        expected_grad: dict[int, torch.Tensor] = {}
        for n, place in enumerate(lookup.index_N.tolist()):
            row = int(lookup.rows_U[place])
            expected_grad[row] = expected_grad.get(row, torch.zeros(3)) + coefficient_N[n]
            weights.setdefault(row, lookup.weight_UW[place].clone())
        assert len(expected_grad) == len(lookup.rows_U)
        for row, grad in expected_grad.items():
            accumulators[row] = accumulators.get(row, 0.0) + float(grad.square().mean())
            weights[row] = weights[row] - 0.1 * grad / (accumulators[row] ** 0.5 + 1e-6)
        table.apply(lookup, leaf.grad, optim)
    state = table.state()
    for row, weight in weights.items():
        assert torch.allclose(state["weight"][row], weight, atol=1e-5)
        assert float(state["accumulator"][row]) == pytest.approx(accumulators[row], rel=1e-4)
    untouched = [row for row in range(table.ids.num_rows) if row not in weights]
    assert all(state["accumulator"][row] == 0 for row in untouched)


def test_adagrad_by_hand() -> None:
    weight, accumulator = rowwise_adagrad(
        torch.tensor([[1.0, 2.0]]), torch.tensor([3.0]), torch.tensor([[1.0, -1.0]]), lr=0.5, eps=0.5
    )
    assert weight[0].tolist() == pytest.approx([0.8, 2.2]) and accumulator.tolist() == [4.0]


def test_changes_are_exactly_the_rows_whose_weights_changed() -> None:
    encoder, table = made()
    rng = np.random.default_rng(1)
    for _ in range(4):
        step(table, encoder.encode_columns(columns(rng, 5, 25, num_ids=6)))
    keys, rows = table.ids.items()
    former = {key: table.weight[row].clone() for key, row in zip(keys.tolist(), rows.tolist(), strict=True)}
    clock = table.clock
    lookup = table.lookup(encoder.encode_columns(columns(rng, 5, 25, num_ids=12)), np.ones(25, bool))
    grad_UW = torch.ones_like(lookup.weight_UW)
    grad_UW[::2] = 0.0
    table.apply(lookup, grad_UW, OptimConfig())
    changed, weights, evicted = table.changes(clock)
    keys, rows = table.ids.items()
    expected = {
        key: table.weight[row].tolist()
        for key, row in zip(keys.tolist(), rows.tolist(), strict=True)
        if key not in former or not torch.equal(former[key], table.weight[row])
    }
    assert 0 < len(expected) < len(keys) and not len(evicted)
    assert dict(zip(changed.tolist(), weights.tolist(), strict=True)) == expected


def test_evictions_are_told_once_and_a_return_is_only_a_row() -> None:
    encoder, table = made()
    step(table, items(encoder, "a", "a", "a", "b", "b", "b"))
    table.changes(0)
    base = table.clock
    a, b = (value_key("item_id", name) for name in "ab")
    step(table, items(encoder, "a", "b"))
    table.evict(np.array([a, b]))
    keys, _, evicted = table.changes(base)
    assert {a, b} == set(evicted.tolist()) and {a, b}.isdisjoint(keys.tolist())
    step(table, items(encoder, "a", "a", "a"))
    keys, _, evicted = table.changes(base)
    assert evicted.tolist() == [b] and a in keys.tolist()
    assert table.changes(table.clock)[2].tolist() == []


def test_the_counters_of_a_field_add_up() -> None:
    encoder, table = made()
    step(table, items(encoder, "a", "a", "a", "b"))
    step(table, items(encoder, "a", "b"))
    item = table.counters["item_id"]
    assert (item.lookups, item.default_lookups, item.missing_lookups) == (6, 5, 0)
    assert table.counters["item.price"].missing_lookups == 6


@pytest.mark.parametrize(("field", "value"), [("width", 0), ("init_scale", -0.1)])
def test_bad_settings_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}: {value} is not allowed; "):
        EmbeddingConfig(**{field: value})
