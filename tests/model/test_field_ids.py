"""Settings of single fields: what they override, and what is refused."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from freshrank.config import load_config
from freshrank.strict import ConfigError, build
from model.config import ModelConfig
from model.embedding_config import EmbeddingConfig
from model.features import EncodingConfig, model_fields
from model.field_ids import NO_LIMIT, FieldIdsConfig, IdRules
from model.optim import OptimConfig
from tests.model.worlds import SCHEMA

REPO_ROOT = Path(__file__).parents[2]
FIELDS = model_fields(SCHEMA, EncodingConfig())
NAMES = [one.name for one in FIELDS]


def test_a_field_takes_its_own_settings_and_the_others_the_general_ones() -> None:
    given = {"user_id": FieldIdsConfig(admission=7, ttl_ms=60_000, max_rows=9), "item.tags": FieldIdsConfig()}
    rules = IdRules(FIELDS, given | {"item.category": FieldIdsConfig(admission_rule="count")}, "probability")
    user, item, history = (NAMES.index(name) for name in ("user_id", "item_id", "history_item"))
    assert (rules.examples_F[user], rules.ttl_ms_F[user], rules.max_rows_F[user]) == (7, 60_000, 9)
    assert (rules.examples_F[item], rules.ttl_ms_F[item], rules.max_rows_F[item]) == (3, NO_LIMIT, NO_LIMIT)
    assert rules.examples_F[history] == 0
    assert np.flatnonzero(~rules.is_drawn_F).tolist() == [NAMES.index("item.category")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "item_ids",
            r"embedding\.fields: 'item_ids' is not a field; user_id, user\.city, .*history_item, .*item\.tags",
        ),
        ("history_item", "embedding.fields: 'history_item' takes the ids of item_id; set them there"),
    ],
)
def test_settings_of_no_field_are_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IdRules(FIELDS, {name: FieldIdsConfig()}, "count")


@pytest.mark.parametrize(
    ("cls", "name", "value", "allowed"),
    [
        (FieldIdsConfig, "admission", 0, "at least 1, or null"),
        (FieldIdsConfig, "ttl_ms", 0, "at least 1, or null"),
        (FieldIdsConfig, "max_rows", -1, "at least 1, or null"),
        (EmbeddingConfig, "max_rows", 0, "at least 1, or null"),
        (EmbeddingConfig, "evictions_per_step", 0, "at least 1"),
        (OptimConfig, "row_half_life_ms", 0, "at least 1, or null"),
    ],
)
def test_impossible_settings_are_refused_by_name(cls: type, name: str, value: int, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: {value} is not allowed; {allowed}$"):
        cls(**{name: value})


def test_settings_come_from_plain_data() -> None:
    config = build(EmbeddingConfig, {"fields": {"user_id": {"ttl_ms": 5, "admission_rule": "probability"}}}, "e")
    assert config.fields == {"user_id": FieldIdsConfig(ttl_ms=5, admission_rule="probability")}
    with pytest.raises(ConfigError, match=r"e\.fields\.user_id\.ttl is not a setting; did you mean ttl_ms\?"):
        build(EmbeddingConfig, {"fields": {"user_id": {"ttl": 5}}}, "e")


def test_settings_of_fields_reach_a_ranker_through_a_manifest() -> None:
    fields = {"user_id": FieldIdsConfig(ttl_ms=5, admission_rule="probability")}
    config = ModelConfig(embedding=EmbeddingConfig(fields=fields))
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(config)), ModelConfig) == config


@pytest.mark.parametrize("field", ["user_id", "user"])
def test_a_run_is_checked_for_settings_of_no_field(field: str) -> None:
    run = load_config(REPO_ROOT / "configs" / "demo.yaml", [f"model.embedding.fields.{field}.max_rows=5"])
    if field == "user_id":
        run.check()
    else:
        with pytest.raises(ConfigError, match=r"^model\.embedding\.fields: 'user' is not a field; user_id, "):
            run.check()
