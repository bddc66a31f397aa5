"""PEPNet's EPNet in front of another network: its input is gated by the scenario before it sees it."""

from dataclasses import replace

from torch import nn

from model.epnet import EPNet, EPNetConfig
from model.inputs import RowInputs
from model.network import Network, NetworkInputs
from model.network_around import NetworkAround
from model.seeding import initialise


class DomainGate(NetworkAround):
    """A network whose input is O (`model.epnet`) in place of x."""

    def __init__(self, config: EPNetConfig, network: Network, *, seed: int | None) -> None:
        """With `seed` None the gate is left undrawn, to be loaded."""
        super().__init__(network, network.shape)
        self.epnet = EPNet(config, network.shape)
        if seed is not None:
            initialise(self.epnet, seed, prefix="epnet")

    def inner_inputs(self, inputs: NetworkInputs) -> NetworkInputs:
        """Returns the gated rows."""
        return replace(inputs, x=RowInputs(self.epnet(inputs.x.whole(), inputs.row_offsets)))

    def own_lists(self) -> list[nn.ModuleList]:
        """Returns the gate's scenario embeddings."""
        return [self.epnet.embeddings]
