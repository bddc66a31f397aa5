"""Crossed features: keys against plain loops, their own rows and rates, what is refused, training as serving."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xxhash

from freshrank.config import load_config
from freshrank.peers import VowpalWabbit, products
from freshrank.strict import build
from model.crosses import cross_keys
from model.embedding_config import EmbeddingConfig
from model.features import EncodedBatch, EncodingConfig, FeatureEncoder, RowColumns, model_fields
from model.field_ids import FieldIdsConfig
from model.hashing import MISSING_KEY, REMOVED_KEY, pair_keys
from model.hinet_config import HiNetConfig
from model.key_lists import KeyLists
from model.labels import LabelBatch
from model.learner import Learner
from model.optim import OptimConfig
from model.serving import ServingModel
from tests.model.worlds import SCHEMA, columns, labels, tiny_config

torch.set_num_threads(1)
CROSSES = (("user_id", "item.tags"), ("user.interests", "item.category"), ("history_item", "item.tags"))
ENCODING = EncodingConfig(history_length=3, crosses=CROSSES)
WORD = 1 << 64


def fields_and_batch(seed: int, *, num_rows: int = 17) -> tuple[list[str], EncodedBatch]:
    encoder = FeatureEncoder(SCHEMA, ENCODING)
    batch = encoder.encode_columns(columns(np.random.default_rng(seed), 5, num_rows))
    return [one.name for one in encoder.fields], batch


def pair_key(field: str, first: int, second: int) -> int:
    """The key of one pair, in Python's integers."""

    def mix(number: int) -> int:
        number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) % WORD
        number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) % WORD
        return number ^ (number >> 31)

    if MISSING_KEY in (first, second):
        return MISSING_KEY
    salted = mix((first * 0x9E3779B97F4A7C15 + xxhash.xxh64_intdigest(field.encode())) % WORD)
    mixed = mix((salted + second) % WORD)
    signed = mixed - WORD if mixed >= WORD // 2 else mixed
    return {MISSING_KEY: 1, REMOVED_KEY: -2}.get(signed, signed)


@pytest.mark.parametrize("seed", range(4))
def test_crosses_are_all_pairs_of_a_rows_values(seed: int) -> None:
    names, batch = fields_and_batch(seed)
    assert names[-3:] == ["user_id&item.tags", "user.interests&item.category", "history_item&item.tags"]
    request_lists = dict(zip(("user.interests", "history_item"), batch.request_lists, strict=False))

    def entry(lists: KeyLists, number: int) -> list[int]:
        return lists.keys_N[lists.offsets[number] : lists.offsets[number + 1]].tolist()

    for place, (request_field, item_field) in enumerate(CROSSES):
        for row, request in enumerate(batch.request_index_B.tolist()):
            if request_field == "user_id":
                left = [int(batch.request_keys_FR[names.index("user_id"), request])]
            else:
                left = entry(request_lists[request_field], request)
            if item_field == "item.tags":
                right = entry(batch.item_lists[0], row)
            else:
                right = [int(batch.item_keys_FB[names.index("item.category") - names.index("item_id"), row])]
            expected = [pair_key(f"{request_field}&{item_field}", a, b) for a in left for b in right]
            assert entry(batch.item_lists[1 + place], row) == expected


def test_no_rows_have_no_pairs() -> None:
    _, batch = fields_and_batch(0, num_rows=0)
    assert [one.offsets.tolist() for one in batch.item_lists] == [[0]] * 4


def test_pairs_do_not_collide_and_are_never_reserved() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(-(2**63), 2**63 - 1, 300)
    small = np.arange(1, 301)  # neighbours must not collide either
    for first, second in ((values, values), (small, small), (small, values)):
        keys = pair_keys("a&b", np.repeat(first, 300), np.tile(second, 300))
        assert len(np.unique(keys)) == 90_000 and not np.isin(keys, [MISSING_KEY, REMOVED_KEY]).any()
        assert not np.isin(pair_keys("a&c", np.repeat(first, 300), np.tile(second, 300)), keys).any()
    bits = pair_keys("a&b", np.full(4096, 7), np.arange(1, 4097)).view(np.uint64)
    ones = [((bits >> np.uint64(bit)) & np.uint64(1)).mean() for bit in range(64)]
    assert 0.45 < min(ones) and max(ones) < 0.55


def test_lists_of_the_cross_are_in_the_order_of_the_rows() -> None:
    request = KeyLists(np.array([1, 2, 3]), np.array([0, 2, 3]))
    item = KeyLists(np.array([10, 11, 12, MISSING_KEY]), np.array([0, 1, 3, 4]))
    crossed = cross_keys("a&b", request, item, np.array([1, 0, 0]))
    pairs = [(3, 10), (1, 11), (1, 12), (2, 11), (2, 12), (1, MISSING_KEY), (2, MISSING_KEY)]
    assert crossed.keys_N.tolist() == [pair_key("a&b", *pair) for pair in pairs]
    assert crossed.offsets.tolist() == [0, 1, 5, 7]


@pytest.mark.parametrize(
    ("crosses", "message"),
    [
        ([["user_id", "item.size"]], r"^encoding\.crosses: \['user_id', 'item\.size'\] is not allowed; .*item\.tags$"),
        ([["item.tags", "user_id"]], r"is not allowed; first one of user_id, user\.city, .*; then one of item_id, "),
        ([["user_id", "user.city"]], r"^encoding\.crosses: \['user_id', 'user\.city'\] is not allowed; first one of "),
        ([["item_id", "item.tags"]], r"^encoding\.crosses: \['item_id', 'item\.tags'\] is not allowed; first one of "),
        ([["scenario", "item_id"]], r"^encoding\.crosses: \['scenario', 'item_id'\] is not allowed; first one of "),
    ],
)
def test_a_pair_of_other_fields_is_refused_in_one_line(crosses: list[list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        model_fields(SCHEMA, build(EncodingConfig, {"crosses": crosses}, "encoding"))
    assert "\n" not in str(error.value)


def test_a_pair_given_twice_and_a_threshold_of_zero_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^crosses: \['user_id', 'item_id'\] twice is not allowed; each pair once$"):
        EncodingConfig(crosses=(("user_id", "item_id"), ("user_id", "item_id")))
    with pytest.raises(ValueError, match="^crosses_admission: 0 is not allowed; at least 1$"):
        EncodingConfig(crosses_admission=0)


def test_the_scenario_can_be_crossed_where_it_is_a_field() -> None:
    fields = model_fields(SCHEMA, EncodingConfig(scenario=True, crosses=(("scenario", "item_id"),)))
    assert fields[-1].name == "scenario&item_id" and fields[-1].many


def test_vowpal_wabbit_has_its_own_products_instead() -> None:
    letters = "abcdefghijklmnopqrst"
    for config in (EncodingConfig(), ENCODING):
        fields = model_fields(SCHEMA, config)
        names = dict(zip(letters, (one.name for one in fields), strict=False))
        assert [(names[a], names[b]) for a, b in products(fields, letters[: len(fields)])] == [("user_id", "item.tags")]


def test_vowpal_wabbit_is_given_no_crosses() -> None:
    pytest.importorskip("vowpalwabbit")
    texts = []
    for config in (EncodingConfig(history_length=3), ENCODING):
        encoder = FeatureEncoder(SCHEMA, config)
        batch: Any = SimpleNamespace(encoded=encoder.encode_columns(columns(np.random.default_rng(0), 5, 17)))
        texts.append(VowpalWabbit(encoder.fields, [0.0], seed=0, rate=0.1).prepare(batch)[0])
    assert len(texts[0]) == 17 and texts[0] == texts[1]


def learner(**embedding: object) -> Learner:
    return Learner(SCHEMA, tiny_config(encoding=ENCODING, embedding=EmbeddingConfig(width=4, **embedding)), seed=0)


def drawn(model: Learner, rng: np.random.Generator) -> tuple[EncodedBatch, LabelBatch]:
    return model.encode(columns(rng, 6, 24)), labels(rng, 24)


def one_row(model: Learner, user: str, tags: list[str]) -> EncodedBatch:
    row = RowColumns(
        scenario=["home"], user_id=[user], item_id=["i"], request_index_B=np.array([0]), item={"tags": [tags]}
    )
    return model.encode(row)


LIKED = LabelBatch(
    label_BT=np.ones((1, 2), np.float32),
    mask_BT=np.ones((1, 2), np.bool_),
    weight_BT=np.ones((1, 2), np.float32),
    first_BT=np.ones((1, 2), np.bool_),
)


def test_a_pair_gets_a_row_after_its_own_number_of_examples() -> None:
    encoding = EncodingConfig(history_length=0, admission_ids=100, crosses=CROSSES[:1], crosses_admission=2)
    model = Learner(SCHEMA, tiny_config(encoding=encoding), seed=0)
    counters = model.trained.table.counters["user_id&item.tags"]
    for number, rows in enumerate([0, 2, 2, 3]):
        tags = ["a", "b"] if number < 2 else ["c"]
        model.learn(one_row(model, "u", tags), LIKED)
        assert counters.rows == rows
    model.learn(one_row(model, "v", ["a"]), LIKED)
    assert counters.rows == 3 and model.trained.table.counters["user_id"].rows == 0


def test_pairs_of_a_field_with_a_limit_make_room() -> None:
    model = learner(fields={"user_id&item.tags": FieldIdsConfig(max_rows=5)})
    rng = np.random.default_rng(0)
    for _ in range(4):
        model.learn(*drawn(model, rng))
    counters = model.trained.table.counters["user_id&item.tags"]
    assert counters.evictions["full"] > 0
    model.learn(one_row(model, "u", ["a"]), LIKED)
    assert counters.rows == 5


def test_serving_makes_the_same_keys_and_scores_with_the_same_rows() -> None:
    model, rng = learner(), np.random.default_rng(0)
    for _ in range(8):
        model.learn(*drawn(model, rng))
    serving = ServingModel.from_full(SCHEMA, model.config, model.trained.serving_full())
    for num_requests in (1, 9):
        given = columns(rng, num_requests, 30)
        ours, theirs = model.encode(given), serving.encode(given)
        assert all(np.array_equal(a.keys_N, b.keys_N) for a, b in zip(ours.item_lists, theirs.item_lists, strict=True))
        logit_BT = model.score(ours).astype(np.float64)
        assert np.allclose(serving.score(theirs), 1 / (1 + np.exp(-logit_BT)), atol=1e-6)


@pytest.mark.parametrize("fields", [{}, {"user_id&item.tags": FieldIdsConfig(row_lr=0.9)}])
def test_resume_is_bit_exact(fields: dict[str, FieldIdsConfig]) -> None:
    rng = np.random.default_rng(0)
    model, twin = learner(fields=fields), learner(fields=fields)
    for step in range(8):
        if step == 4:
            state, meta, twin = twin.trained.state(), twin.trained.state_meta(), learner(fields=fields)
            twin.trained.load_state(state, meta)
        batch, given = drawn(model, rng)
        model.learn(batch, given)
        twin.learn(batch, given)
    ours, theirs = model.trained.state(), twin.trained.state()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_field_with_a_rate_of_its_own_steps_by_it_and_the_others_as_before() -> None:
    batch = one_row(learner(), "u", ["a", "b"])
    steps = {}
    for rate in (None, 0.5):
        table = learner(fields={"user_id&item.tags": FieldIdsConfig(row_lr=rate)}).trained.table
        lookup = table.lookup(batch, np.ones(1, np.bool_))
        table.apply(lookup, torch.ones_like(lookup.weight_UW), OptimConfig(row_lr=0.1))
        steps[rate] = lookup.weight_UW - table.weight[torch.from_numpy(lookup.rows_U)]
        of_pairs_U = torch.from_numpy(np.isin(lookup.rows_U, table.ids.lookup(batch.item_lists[1].keys_N)))
    assert of_pairs_U.sum() == 2
    assert torch.allclose(steps[None], torch.tensor(0.1))
    assert torch.allclose(steps[0.5][of_pairs_U], torch.tensor(0.5))
    assert torch.equal(steps[0.5][~of_pairs_U], steps[None][~of_pairs_U])


def test_the_default_row_of_a_field_takes_the_fields_rate() -> None:
    rare = EncodingConfig(history_length=0, crosses=CROSSES[:1], crosses_admission=9)
    fields = {"user_id&item.tags": FieldIdsConfig(row_lr=0.5)}
    config = tiny_config(encoding=rare, embedding=EmbeddingConfig(width=4, fields=fields))
    table = Learner(SCHEMA, config, seed=0).trained.table
    before = table.reserved()
    batch = one_row(learner(), "u", ["a"])
    batch = replace(batch, request_lists=batch.request_lists[:1], item_lists=batch.item_lists[:2])
    lookup = table.lookup(batch, np.ones(1, np.bool_))
    table.apply(lookup, torch.ones_like(lookup.weight_UW), OptimConfig(row_lr=0.1))
    last_default = table.layout.num_reserved - 2
    assert torch.allclose((before - table.reserved())[last_default], torch.tensor(0.5))
    assert torch.allclose((before - table.reserved())[0], torch.tensor(0.1))


def test_a_users_taste_is_learned_by_heart_only_with_the_cross() -> None:
    rng = np.random.default_rng(0)
    num_users, num_tags = 20, 8
    likes = rng.random((num_users, num_tags)) < 0.5
    late_error = {}
    for crosses in ((), (("user_id", "item.tags"),)):
        encoding = EncodingConfig(item_id=False, history_length=0, admission_ids=1, crosses=crosses)
        net = HiNetConfig(expert_hidden=16, expert_width=8, task_hidden=16, task_width=8, tower=(8,))
        config = tiny_config(hinet=net, encoding=encoding, optim=OptimConfig(row_lr=0.3, dense_lr=3e-3))
        model, draws = Learner(SCHEMA, config, seed=0), np.random.default_rng(1)
        errors = []
        for _ in range(100):
            users, tags = draws.integers(num_users, size=32), draws.integers(num_tags, size=32)
            batch = model.encode(
                RowColumns(
                    scenario=["home"] * 32,
                    user_id=[f"u{user}" for user in users],
                    item_id=[f"i{n}" for n in range(32)],
                    request_index_B=np.arange(32),
                    item={"tags": [[f"t{tag}"] for tag in tags]},
                )
            )
            label_BT = np.repeat(likes[users, tags][:, None], 2, axis=1).astype(np.float32)
            ones = np.ones((32, 2))
            given = LabelBatch(
                label_BT=label_BT, mask_BT=ones > 0, weight_BT=ones.astype(np.float32), first_BT=ones > 0
            )
            logit_BT = model.learn(batch, given).logits_BT
            errors.append(((logit_BT[:, 0] > 0) != (label_BT[:, 0] > 0)).mean())
        late_error[crosses] = float(np.mean(errors[-20:]))
    plain, crossed = late_error.values()
    assert crossed < 0.02 < plain / 5


def test_crosses_come_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    text = (
        "scenarios: [home]\ntasks: {click: {action: click, window_ms: 1000}}\nfeatures: {item: {tags: categorical}}\n"
    )
    (tmp_path / "run.yaml").write_text(text + "model: {encoding: {crosses: [[user_id, item.tags]]}}\n")
    assert load_config(tmp_path / "run.yaml").model.encoding.crosses == (("user_id", "item.tags"),)
    run = load_config(tmp_path / "run.yaml", ["model.encoding.crosses=[[user_id, item_id]]"])
    assert run.model.encoding.crosses == (("user_id", "item_id"),)
