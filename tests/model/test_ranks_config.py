"""What cannot be learned by several ranks is refused in one line, and by one rank never."""

import pytest

from model.aesm2 import AESM2Config
from model.config import ModelConfig
from model.position_bias import PositionBiasConfig
from model.ranks_config import check_ranks
from model.star import STARConfig
from tests.model.worlds import tiny_config

REFUSED = {
    "model.architecture: star": ModelConfig(architecture="star", preset="custom", star=STARConfig()),
    "model.aesm2.divergence_weight: ": ModelConfig(architecture="aesm2", preset="custom", aesm2=AESM2Config()),
    "model.position_bias: given": tiny_config(position_bias=PositionBiasConfig()),
}


@pytest.mark.parametrize("setting", list(REFUSED))
def test_what_needs_whole_micro_batches_is_refused(setting: str) -> None:
    check_ranks(REFUSED[setting], 1)
    with pytest.raises(ValueError, match=f"^{setting}.* is not allowed.*;") as error:
        check_ranks(REFUSED[setting], 2)
    assert "more than one rank" in str(error.value) and "\n" not in str(error.value)


def test_there_are_no_more_ranks_than_shards() -> None:
    check_ranks(ModelConfig(), 1024)
    with pytest.raises(ValueError, match="WORLD_SIZE: 1025 is not allowed; at most 1024"):
        check_ranks(ModelConfig(), 1025)
