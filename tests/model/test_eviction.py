"""Admission, ageing, limits and reuse of rows against a dictionary, and deltas that carry what was taken away."""

import dataclasses
from collections.abc import Sequence
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import eviction
from model.admission import AdmissionConfig
from model.assembly import InputLayout
from model.embedding import EmbeddingTable
from model.embedding_config import EmbeddingConfig
from model.features import EncodedBatch, EncodingConfig, FeatureEncoder, RowColumns
from model.field_ids import FieldIdsConfig
from model.hashing import value_key
from model.id_table import IdTable
from model.optim import OptimConfig
from stream.schema import FeatureConfig, FeaturesConfig, SchemaConfig, TaskConfig
from tests.model.rows_oracle import FIELDS, WIDTH, BatchRow, Row, Rows, Rules

torch.set_num_threads(1)

SCHEMA = SchemaConfig(
    scenarios=("home",),
    tasks={"click": TaskConfig(action="click", window_ms=1_000)},
    features=FeaturesConfig(item={"tags": FeatureConfig(kind="categorical", many=True)}),
)
ENCODER = FeatureEncoder(SCHEMA, EncodingConfig(history_length=0))
CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"),
    ],
)


def encoded(batch: Sequence[BatchRow]) -> EncodedBatch:
    """Returns rows of one request each."""
    return ENCODER.encode_columns(
        RowColumns(
            scenario=["home"] * len(batch),
            user_id=[user for user, _, _ in batch],
            item_id=[item for _, item, _ in batch],
            request_index_B=np.arange(len(batch)),
            item={"tags": [tags for _, _, tags in batch]},
        )
    )


def new_table(rules: Rules, device: str = "cpu", **changes: object) -> EmbeddingTable:
    layout = InputLayout(ENCODER.fields, width=WIDTH, interaction=False)
    fields = {
        name: FieldIdsConfig(admission=rules.admission[name], ttl_ms=rules.ttl_ms[name], max_rows=rules.max_rows[name])
        for name in FIELDS
    }
    config = EmbeddingConfig(
        width=WIDTH,
        admission=AdmissionConfig(counter_bits=16),
        max_rows=rules.max_total,
        evictions_per_step=rules.per_step,
        fields=fields,
    )
    return EmbeddingTable(layout, dataclasses.replace(config, **changes), seed=3, device=torch.device(device))


def optim(rules: Rules) -> OptimConfig:
    return OptimConfig(row_lr=rules.lr, row_eps=rules.eps, row_half_life_ms=rules.half_life_ms)


def plain(**changes: object) -> Rules:
    """Returns rules without any limit, every value admitted at once."""
    nothing = dict.fromkeys(FIELDS)
    rules = Rules(admission=dict.fromkeys(FIELDS, 1), ttl_ms=dict(nothing), max_rows=dict(nothing))
    return dataclasses.replace(rules, **changes)


def learn(
    table: EmbeddingTable,
    rules: Rules,
    batch: Sequence[BatchRow],
    *,
    watermark_ms: int = 0,
    counts: list[bool] | None = None,
    gradients: list[list[float]] | None = None,
) -> None:
    lookup = table.lookup(encoded(batch), np.array(counts or [True] * len(batch)))
    gradient_NW = torch.tensor(gradients or [[1.0] * WIDTH] * len(lookup.index_N), device=lookup.weight_UW.device)
    index_N = torch.from_numpy(lookup.index_N).to(gradient_NW.device)
    grad_UW = torch.zeros_like(lookup.weight_UW).index_add(0, index_N, gradient_NW)
    table.apply(lookup, grad_UW, optim(rules), watermark_ms=watermark_ms)


def row_of(table: EmbeddingTable, field: str, value: str) -> int:
    """Returns the number of a value's row, -1 if it has none."""
    return int(table.ids.lookup(np.array([value_key(field, value)]))[0])


def values_with_rows(table: EmbeddingTable, field: str, values: Sequence[str]) -> str:
    return "".join(value for value in values if row_of(table, field, value) >= 0)


def shown(items: str) -> list[BatchRow]:
    """Returns one row per letter, of one user, without tags."""
    return [("u", item, []) for item in items]


NUMBERS = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0])
BATCHES = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abcdef"), st.lists(st.sampled_from("xyz"), max_size=2)),
    min_size=1,
    max_size=5,
)
OPS = st.lists(
    st.one_of(
        st.tuples(st.just("learn"), BATCHES, st.integers(0, 12)),
        st.tuples(st.just("learn"), BATCHES, st.integers(0, 12)),
        st.tuples(st.just("evict"), st.lists(st.sampled_from("abcdef"), unique=True, max_size=2)),
        st.tuples(st.sampled_from(["export", "reload"])),
    ),
    min_size=3,
    max_size=16,
)
SOME_TTL = st.sampled_from([None, 5, 15])
RULES = st.builds(
    Rules,
    admission=st.fixed_dictionaries({name: st.integers(1, 3) for name in FIELDS}),
    ttl_ms=st.fixed_dictionaries(dict.fromkeys(FIELDS, SOME_TTL)),
    max_rows=st.fixed_dictionaries(dict.fromkeys(FIELDS, st.sampled_from([None, 1, 3]))),
    max_total=st.sampled_from([None, 2, 5]),
    per_step=st.sampled_from([1, 2, 1_000]),
    half_life_ms=st.sampled_from([None, 7]),
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@settings(max_examples=60, deadline=None)
@given(rules=RULES, ops=OPS, data=st.data())
def test_any_history_equals_a_dictionary_of_rows(
    device: str, rules: Rules, ops: list[tuple[object, ...]], data: st.DataObject
) -> None:
    """Touch, admit, expire, crowd out, evict, reuse, resume: same values, row numbers, weights.

    A copy that was given the first export and then only the deltas equals the table bit for bit.
    """
    with mock.patch.object(eviction, "_MIN_SAMPLE", 2):
        table, oracle = new_table(rules, device), Rows(rules)
        for place, name in enumerate(FIELDS):
            oracle.default[name] = Row(2 * place, table.weight[2 * place].tolist())
            oracle.missing[name] = Row(2 * place + 1, table.weight[2 * place + 1].tolist())
        replica, base = exported(table, {}, 0), table.clock
        watermark_ms = data.draw(st.sampled_from([0, 100]))
        for op, *arguments in [*ops, ("export",)]:
            if op == "learn":
                batch, later_ms = arguments
                watermark_ms += later_ms if watermark_ms else 0
                counts = data.draw(st.lists(st.booleans(), min_size=len(batch), max_size=len(batch)))
                gradients = [[data.draw(NUMBERS) for _ in range(WIDTH)] for _ in oracle.occurrences(batch)]
                check_admission_changes_no_score(table, batch, counts)
                learn(table, rules, batch, watermark_ms=watermark_ms, counts=counts, gradients=gradients)
                oracle.learn(batch, counts, gradients, watermark_ms)
                watermark_ms = watermark_ms or data.draw(st.sampled_from([0, 50]))
            elif op == "evict":
                [items] = arguments
                table.evict(np.array([value_key("item_id", item) for item in items], np.int64))
                oracle.clock += 1
                oracle.evict([("item_id", item) for item in items if ("item_id", item) in oracle.own], "asked")
            elif op == "export":
                replica, base = exported(table, replica, base), table.clock
                table.forget_evicted(base)
                assert replica == exported(table, {}, 0)
            else:
                state, counters, table = table.state(), table.counters, new_table(rules, device)
                table.load_state(state)
                table.counters = {name: dataclasses.replace(one) for name, one in counters.items()}
            check_equal(table, oracle)


def exported(table: EmbeddingTable, replica: dict[int, list[float]], since: int) -> dict[int, list[float]]:
    """Returns what a reader has after the changes since a clock: evictions first, then rows."""
    keys, weight_NW, evicted = table.changes(since)
    assert not set(keys.tolist()) & set(evicted.tolist())
    kept = {key: weights for key, weights in replica.items() if key not in set(evicted.tolist())}
    return kept | dict(zip(keys.tolist(), weight_NW.tolist(), strict=True))


def check_admission_changes_no_score(table: EmbeddingTable, batch: list[BatchRow], counts: list[bool]) -> None:
    rows = encoded(batch)
    lookup = table.lookup(rows, np.array(counts))
    scored_N = table.layout.rows(rows, table.layout.flat_keys(rows), table.ids)
    assert torch.equal(lookup.weight_UW.cpu()[lookup.index_N], table.weight.cpu()[scored_N])


def check_equal(table: EmbeddingTable, oracle: Rows) -> None:
    state = table.state()
    keys, rows = table.ids.items()
    expected = {value_key(name, str(value)): row for (name, value), row in oracle.own.items()}
    assert dict(zip(keys.tolist(), rows.tolist(), strict=True)) == {key: row.number for key, row in expected.items()}
    for row in [*oracle.own.values(), *oracle.default.values(), *oracle.missing.values()]:
        assert state["weight"][row.number].tolist() == pytest.approx(row.weight, rel=1e-4, abs=1e-5)
        assert float(state["accumulator"][row.number]) == pytest.approx(row.accumulator, rel=1e-4, abs=1e-6)
    totals = {cause: sum(one.evictions[cause] for one in table.counters.values()) for cause in oracle.evicted}
    assert totals == oracle.evicted
    for name in FIELDS:
        assert table.counters[name].rows == sum(value[0] == name for value in oracle.own)


def test_a_row_goes_when_it_was_not_seen_for_longer_than_its_ttl() -> None:
    rules = plain(ttl_ms={"user_id": None, "item_id": 10, "item.tags": None})
    table = new_table(rules)
    learn(table, rules, shown("a"), watermark_ms=100)
    learn(table, rules, shown("b"), watermark_ms=105)
    learn(table, rules, shown("c"), watermark_ms=110)
    assert values_with_rows(table, "item_id", "abc") == "abc", "10 ms are not longer than 10 ms"
    learn(table, rules, shown("c"), watermark_ms=111)
    assert values_with_rows(table, "item_id", "abc") == "bc"
    learn(table, rules, shown("b"), watermark_ms=90)
    assert values_with_rows(table, "item_id", "abc") == "bc", "event time does not run backwards"
    learn(table, rules, shown("c"), watermark_ms=122)
    assert values_with_rows(table, "item_id", "abc") == "c"
    assert table.counters["item_id"].evictions == {"expired": 2, "full": 0, "asked": 0}
    assert row_of(table, "user_id", "u") >= 0


def test_rows_seen_before_event_time_is_known_age_from_its_first_reading() -> None:
    rules = plain(ttl_ms={"user_id": None, "item_id": 10, "item.tags": None})
    table = new_table(rules)
    learn(table, rules, shown("a"))
    learn(table, rules, shown("b"), watermark_ms=1_000)
    learn(table, rules, shown("b"), watermark_ms=1_010)
    assert values_with_rows(table, "item_id", "ab") == "ab"
    learn(table, rules, shown("b"), watermark_ms=1_011)
    assert values_with_rows(table, "item_id", "ab") == "b"


def test_the_least_recently_seen_make_room() -> None:
    rules = plain(max_rows={"user_id": None, "item_id": 3, "item.tags": None})
    table = new_table(rules)
    for items in ("ab", "c", "a", "d"):
        learn(table, rules, shown(items))
    assert values_with_rows(table, "item_id", "abcd") == "acd"
    assert table.occupancy() == {"item_id": 1.0}


def test_the_rows_of_the_micro_batch_stay_even_if_they_are_too_many() -> None:
    rules = plain(max_rows={"user_id": None, "item_id": 2, "item.tags": None}, max_total=3)
    table = new_table(rules)
    learn(table, rules, shown("abcd"))
    assert values_with_rows(table, "item_id", "abcd") == "abcd" and table.occupancy() == {"item_id": 2.0, "all": 5 / 3}
    learn(table, rules, shown("d"))
    assert len(values_with_rows(table, "item_id", "abcd")) == 2


def test_a_step_evicts_no_more_than_it_may() -> None:
    rules = plain(ttl_ms={"user_id": None, "item_id": 10, "item.tags": None}, per_step=2)
    table = new_table(rules)
    learn(table, rules, shown("abcde"), watermark_ms=100)
    for left in (3, 1, 0):
        learn(table, rules, shown("f"), watermark_ms=200)
        assert len(values_with_rows(table, "item_id", "abcde")) == left


def test_a_lowered_limit_is_reached_step_by_step_after_a_resume() -> None:
    table = new_table(plain())
    learn(table, plain(), shown("abcdef"))
    rules = plain(max_rows={"user_id": None, "item_id": 1, "item.tags": None}, per_step=2)
    resumed = new_table(rules)
    resumed.load_state(table.state())
    left = []
    for _ in range(4):
        learn(resumed, rules, shown("f"))
        left.append(resumed.counters["item_id"].rows)
    assert left == [4, 2, 1, 1]


def test_order_of_eviction_does_not_depend_on_a_resume_with_thousands_of_rows() -> None:
    """More rows than one scan takes, ties inside and across scans, and more expired rows than one step may evict."""
    nothing = dict.fromkeys(FIELDS)
    rules = plain(max_rows=nothing | {"item_id": 3_000}, ttl_ms=nothing | {"item_id": 4}, per_step=300)
    table, rng = new_table(rules), np.random.default_rng(0)
    twin = new_table(rules)
    for step in range(25):
        batch = [("u", str(n), []) for n in rng.integers(0, 8_000, 700)]
        for one in (table, twin):
            learn(one, rules, batch, watermark_ms=100 + step)
        if step % 6 == 5:
            state, twin = twin.state(), new_table(rules)
            twin.load_state(state)
    a, b = table.state(), twin.state()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert min(table.counters["item_id"].evictions[cause] for cause in ("full", "expired")) > 2_000


def test_a_delta_before_anything_was_promoted_takes_away_what_the_lost_export_had() -> None:
    """The answer to the first promotion was lost: readers have it, the next delta is everything since."""
    table = new_table(plain())
    learn(table, plain(), shown("ab"))
    replica = exported(table, {}, 0)
    table.evict(np.array([value_key("item_id", "a")]))
    assert exported(table, replica, 0) == exported(table, {}, 0)


def test_evictions_are_not_remembered_for_readers_that_do_not_exist() -> None:
    rules = plain(max_rows={"user_id": None, "item_id": 1, "item.tags": None})
    table = new_table(rules)
    for item in "abcdef":
        learn(table, rules, shown(item))
    assert len(table.state()["evicted"]) == 0
    table.changes(0)
    learn(table, rules, shown("a"))
    assert len(table.state()["evicted"]) == 1


def test_an_accumulator_is_halved_by_its_half_life_and_only_then() -> None:
    rules = plain(half_life_ms=50)
    table = new_table(rules)
    learn(table, rules, shown("a"), watermark_ms=100)
    row = row_of(table, "item_id", "a")
    for watermark_ms, expected in ((100, 2.0), (150, 2.0), (250, 1.5)):
        learn(table, rules, shown("a"), watermark_ms=watermark_ms)
        assert float(table.state()["accumulator"][row]) == pytest.approx(expected)


def test_a_new_row_is_a_change_even_if_its_gradient_was_zero() -> None:
    """Else readers would go on with the default row, and part from it when that one changes."""
    table = new_table(plain())
    learn(table, plain(), shown("a"))
    base = table.clock
    learn(table, plain(), shown("b"), gradients=[[0.0] * WIDTH] * 3)
    assert table.changes(base)[0].tolist() == [value_key("item_id", "b")]


@pytest.mark.parametrize("field", [0, 1, None])
def test_oldest_rows_come_in_order_over_many_scans(field: int | None) -> None:
    """Some are seen again meanwhile, some are freed; a limit in event time ends it exactly there."""
    rng, seen, ids = np.random.default_rng(0), eviction.LastSeen(20_000), IdTable(num_reserved=0)
    key_of_row = rng.permutation(np.arange(1, 20_001))
    ids.insert(key_of_row)
    seen.field[:] = rng.integers(-1, 2, 20_000)
    seen.clock[:] = rng.integers(1, 90, 20_000)
    seen.ms[:], seen.now_ms = 10 * seen.clock, 1_000
    oldest, taken = eviction.OldestRows(field, ids), []
    for clock in range(100, 180):
        for count in (1, 200):
            candidates = np.flatnonzero((seen.field == field) if field is not None else (seen.field >= 0))
            candidates = candidates[(seen.ms[candidates] < 700) & (seen.clock[candidates] < clock)]
            order = np.lexsort((key_of_row[candidates], seen.clock[candidates]))
            expected = candidates[order][:count].tolist()
            clocks = seen.clock[expected].tolist()
            found = oldest.take(seen, count, clock=clock, before_ms=700)
            assert (found.rows.tolist(), found.clock.tolist()) == (expected, clocks)
            taken += expected
        seen.free(rng.choice(20_000, 5, replace=False))
        seen.see(rng.choice(np.flatnonzero(seen.clock < clock), 5, replace=False), clock)
    assert len(taken) > 4_000
