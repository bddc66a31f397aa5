"""A user's last actions as further blocks of x, for networks that do not read sequences themselves.

    x' = [x; W readout + b]

Letters: B rows, D width of x, W block width, S columns of the sequence's blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from model.network import Network, NetworkInputs, NetworkShape
from model.network_around import NetworkAround
from model.network_config import check_counts
from model.seeding import initialise
from model.sequence_encoder import SequenceConfig, SequenceEncoder, check_has_history
from model.transformer import Dense


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceBlocksConfig:
    """The read-out of the user's last actions as further blocks of the network's input."""

    blocks: int = 4
    """How many blocks, each as wide as an embedding; at least 1."""
    encoder: SequenceConfig = SequenceConfig()
    """The encoder of the actions."""

    def __post_init__(self) -> None:
        check_counts(self)


class _Front(nn.Module):
    """What is drawn before the network: encoder and projection."""

    def __init__(self, config: SequenceBlocksConfig, block_width: int) -> None:
        super().__init__()
        self.encoder = SequenceEncoder(config.encoder, block_width)
        self.projection = Dense(self.encoder.width, config.blocks * block_width)


class SequenceBlocks(NetworkAround):
    """A network whose input has the blocks `sequence.0`, `sequence.1`, ... at its end.

    Raises:
        ValueError: the model has no history or no item id.
    """

    def __init__(
        self,
        config: SequenceBlocksConfig,
        shape: NetworkShape,
        build: Callable[[NetworkShape], Network],
        *,
        seed: int | None,
    ) -> None:
        """`build` makes the inner network, drawn or not; with `seed` None the encoder is left undrawn, to be loaded."""
        check_has_history(shape)
        names = tuple(f"sequence.{number}" for number in range(config.blocks))
        super().__init__(build(replace(shape, blocks=shape.blocks + names)), shape)
        self.uses_sequence = True
        self.scores_as_it_learns = self.scores_as_it_learns and config.encoder.time_mask_ms == 0
        self.front = _Front(config, shape.block_width)
        if seed is not None:
            initialise(self.front, seed)

    def inner_inputs(self, inputs: NetworkInputs) -> NetworkInputs:
        """Returns the rows with the sequence's blocks."""
        assert inputs.sequence is not None
        readout = self.front.encoder(inputs.sequence, inputs.noise)
        columns_BS = readout.linear(self.front.projection.weight, self.front.projection.bias)
        return replace(inputs, x=inputs.x.with_columns(columns_BS))
