"""The networks that a configuration can name."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from model.attention_mmoe import AttentionMMoE, AttentionMMoEConfig
from model.closeup import Closeup, CloseupConfig
from model.hinet import HiNet
from model.hinet_config import HiNetConfig
from model.hmoe import HMoE, HMoEConfig
from model.mmoe import MMoE, MMoEConfig
from model.network import Network
from model.ple import PLE, PLEConfig
from model.shared_bottom import SharedBottom, SharedBottomConfig

Architecture = Literal["hinet", "shared_bottom", "mmoe", "attention_mmoe", "ple", "hmoe", "closeup"]


class _Network(NamedTuple):
    config: type[Any]
    build: Callable[..., Network]


NETWORKS: Mapping[Architecture, _Network] = {
    "hinet": _Network(HiNetConfig, HiNet),
    "shared_bottom": _Network(SharedBottomConfig, SharedBottom),
    "mmoe": _Network(MMoEConfig, MMoE),
    "attention_mmoe": _Network(AttentionMMoEConfig, AttentionMMoE),
    "ple": _Network(PLEConfig, PLE),
    "hmoe": _Network(HMoEConfig, HMoE),
    "closeup": _Network(CloseupConfig, Closeup),
}
"""Per architecture its configuration, whose defaults are the preset `small`, and the network built from it."""
