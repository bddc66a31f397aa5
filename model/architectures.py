"""The networks that a configuration can name."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from model.closeup import Closeup, CloseupConfig
from model.hinet import HiNet
from model.hinet_config import HiNetConfig
from model.network import Network

Architecture = Literal["hinet", "closeup"]


class _Network(NamedTuple):
    config: type[Any]
    build: Callable[..., Network]


NETWORKS: Mapping[Architecture, _Network] = {
    "hinet": _Network(HiNetConfig, HiNet),
    "closeup": _Network(CloseupConfig, Closeup),
}
"""Per architecture its configuration, whose defaults are the preset `small`, and the network built from it."""
