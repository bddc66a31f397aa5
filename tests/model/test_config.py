"""What a model's configuration cannot be: every mistake is one line that names its field."""

from typing import Any

import pytest

from model.config import ModelConfig
from model.epnet import EPNetConfig
from model.esmm import ESMMConfig
from model.features import EncodingConfig
from model.gradient_weighting import PeLtrConfig
from model.learner import Learner
from model.losses import LossConfig
from model.mmoe import MMoEConfig
from model.pepnet import PEPNetConfig
from model.position_bias import PositionBiasConfig
from model.sequence_blocks import SequenceBlocksConfig
from model.sequence_encoder import SequenceConfig
from tests.model.worlds import SCHEMA

WITHOUT_HISTORY = EncodingConfig(history_length=0)
SEQUENCE_OF_NOTHING = "encoding: history_length: 0 or item_id: false is not allowed with a network that reads sequences"


def custom(architecture: str, **section: object) -> dict[str, Any]:
    return {"architecture": architecture, "preset": "custom", **section}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        pytest.param({"architecture": "mmo"}, "architecture: mmo is not allowed; hinet, shared_bottom, ", id="unknown"),
        pytest.param(
            custom("hinet", mmoe=MMoEConfig()),
            "hinet: absent with architecture: hinet, preset: custom is not allowed; ",
            id="section of another architecture",
        ),
        pytest.param(
            {"mmoe": MMoEConfig()},
            "mmoe: given with architecture: hinet, preset: small is not allowed; ",
            id="section with a preset",
        ),
        pytest.param(
            {"architecture": "star", "preset": "published"},
            "preset: published is not allowed with architecture: star; small, custom",
            id="preset that the architecture has not",
        ),
        pytest.param({"priors": {"like": 0.1}}, "priors: ['like'] are not tasks; click, order", id="prior"),
        pytest.param(
            {"loss": LossConfig(task_weights={"like": 2.0})},
            "loss.task_weights: ['like'] are not tasks; click, order",
            id="weight",
        ),
        pytest.param(
            {"loss": LossConfig(weighting="pe_ltr", pe_ltr=PeLtrConfig(bounds={"like": 0.1}))},
            "loss.pe_ltr.bounds: ['like'] are not tasks; click, order",
            id="bound",
        ),
        pytest.param(
            custom("esmm", esmm=ESMMConfig(funnel=("click", "like"))),
            "esmm.funnel: 'like' is not allowed; tasks of this model: click, order",
            id="head without a task",
        ),
        pytest.param(
            custom("pepnet", pepnet=PEPNetConfig(prior_fields=("item.author",))),
            "pepnet.prior_fields: 'item.author' is not a field of this model; user_id, ",
            id="field of the towers' gates",
        ),
        pytest.param(
            {"domain_gate": EPNetConfig(scenario_fields=("context.page",))},
            "scenario_fields: 'context.page' is not a field of this model; user_id, ",
            id="field of the domain gate",
        ),
        pytest.param(
            {"position_bias": PositionBiasConfig(context="context.page")},
            "position_bias.context: 'context.page' is not a field of this model; user_id, ",
            id="field of the position's tower",
        ),
        pytest.param(
            {"sequence": SequenceBlocksConfig(encoder=SequenceConfig(num_heads=7))},
            "num_heads: 7 is not allowed; a divisor of the row width 32",
            id="heads that do not divide the width",
        ),
        pytest.param(
            {"sequence": SequenceBlocksConfig(), "encoding": WITHOUT_HISTORY}, SEQUENCE_OF_NOTHING, id="no history"
        ),
        pytest.param(
            {"architecture": "closeup", "encoding": WITHOUT_HISTORY}, SEQUENCE_OF_NOTHING, id="closeup without history"
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_its_field(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="not") as refused:
        Learner(SCHEMA, ModelConfig(**settings), seed=0)
    assert str(refused.value).startswith(sentence) and "\n" not in str(refused.value)
