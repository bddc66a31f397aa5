"""The networks that a configuration can name."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from model.aesm2 import AESM2, AESM2Config
from model.attention_mmoe import AttentionMMoE, AttentionMMoEConfig
from model.closeup import Closeup, CloseupConfig
from model.esmm import ESMM, ESMMConfig
from model.hinet import HiNet
from model.hinet_config import HiNetConfig
from model.hmoe import HMoE, HMoEConfig
from model.mmoe import MMoE, MMoEConfig
from model.pepnet import PEPNet, PEPNetConfig
from model.ple import PLE
from model.ple_levels import PLEConfig
from model.shared_bottom import SharedBottom, SharedBottomConfig
from model.star import STAR, STARConfig

Architecture = Literal[
    "hinet", "shared_bottom", "mmoe", "attention_mmoe", "ple", "hmoe", "star", "esmm", "aesm2", "pepnet", "closeup"
]


class _Network(NamedTuple):
    config: type[Any]
    build: type[Any]


NETWORKS: Mapping[Architecture, _Network] = {
    "hinet": _Network(HiNetConfig, HiNet),
    "shared_bottom": _Network(SharedBottomConfig, SharedBottom),
    "mmoe": _Network(MMoEConfig, MMoE),
    "attention_mmoe": _Network(AttentionMMoEConfig, AttentionMMoE),
    "ple": _Network(PLEConfig, PLE),
    "hmoe": _Network(HMoEConfig, HMoE),
    "star": _Network(STARConfig, STAR),
    "esmm": _Network(ESMMConfig, ESMM),
    "aesm2": _Network(AESM2Config, AESM2),
    "pepnet": _Network(PEPNetConfig, PEPNet),
    "closeup": _Network(CloseupConfig, Closeup),
}
"""Per architecture its configuration, whose defaults are the preset `small`, and the network built from it."""
