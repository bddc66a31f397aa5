"""In inference mode networks take short cuts; what comes out is still what is learned."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.architectures import NETWORKS
from model.config import ModelConfig
from model.epnet import EPNetConfig
from model.hinet_config import HiNetConfig
from model.inputs import RowInputs
from model.network import NetworkInputs, NetworkShape
from model.sequence_blocks import SequenceBlocksConfig
from tests.model.histories import histories
from tests.model.networks import offsets

W = 4
REQUEST_WIDTH = 3 * W
SHAPE = NetworkShape(
    blocks=("user_id", "history_item", "history_action", "item_id", "history_item*item_id"),
    block_width=W,
    num_scenarios=3,
    tasks=("click", "order"),
)
CONFIGS = {name: ModelConfig(architecture=name) for name in NETWORKS} | {
    "hinet, no attention": ModelConfig(preset="custom", hinet=HiNetConfig(san="none")),
    "hinet, one layer": ModelConfig(preset="custom", hinet=HiNetConfig(san="none", hierarchy=False)),
    "hinet published": ModelConfig(preset="custom", hinet=HiNetConfig.published()),
    "hinet released": ModelConfig(preset="custom", hinet=HiNetConfig.released()),
    "hinet, sequence in front": ModelConfig(sequence=SequenceBlocksConfig()),
    "hinet, gate in front": ModelConfig(domain_gate=EPNetConfig(scenario_fields=("user_id",))),
}
NETS = {name: config.build_network(SHAPE, seed=0).double() for name, config in CONFIGS.items()}


@settings(max_examples=100)
@given(
    name=st.sampled_from(list(NETS)),
    scenarios=st.lists(st.integers(0, 2), max_size=9).map(sorted)
    | st.integers(0, 2).flatmap(lambda scenario: st.lists(st.just(scenario), min_size=1, max_size=9)),
    num_requests=st.integers(1, 3),
    num_actions=st.integers(0, 3),
    seed=st.integers(0, 9),
)
def test_what_is_served_is_what_is_learned(
    name: str, scenarios: list[int], num_requests: int, num_actions: int, seed: int
) -> None:
    net, generator = NETS[name], torch.Generator().manual_seed(seed)
    index = [row % num_requests for row in range(len(scenarios))]
    index_B = torch.tensor(index, dtype=torch.int64)
    request_RD = torch.randn(num_requests, REQUEST_WIDTH, generator=generator, dtype=torch.float64)
    item_BD = torch.randn(len(index), SHAPE.width - REQUEST_WIDTH, generator=generator, dtype=torch.float64)
    shared = NetworkInputs(
        x=RowInputs(item_BD, request_RD, index_B),
        row_offsets=offsets(scenarios, 3),
        sequence=histories([num_actions] * num_requests, index, W, seed=seed),
    )
    learned_BT = net(replace(shared, x=RowInputs(torch.cat([request_RD[index_B], item_BD], dim=1))))
    with torch.inference_mode():
        served_BT = net(shared)
    assert served_BT.shape == learned_BT.shape == (len(index), 2)
    assert torch.allclose(served_BT, learned_BT, rtol=0, atol=1e-12)
