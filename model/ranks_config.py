"""What several ranks cannot learn together, refused before they start."""

from model.config import ModelConfig
from model.sharding import NUM_SHARDS


def check_ranks(config: ModelConfig, size: int) -> None:
    """Refuses settings under which ranks would not learn what one rank learns.

    Raises:
        ValueError: names the setting, its value and what is allowed.
    """
    if size == 1:
        return
    if size > NUM_SHARDS:
        raise ValueError(f"WORLD_SIZE: {size} is not allowed; at most {NUM_SHARDS}")
    network = config.network
    if config.architecture == "star":
        raise ValueError(
            "model.architecture: star is not allowed with more than one rank; another one: its statistics are of whole"
            " micro-batches"
        )
    if config.architecture == "aesm2" and network.divergence_weight > 0:
        raise ValueError(
            f"model.aesm2.divergence_weight: {network.divergence_weight:g} is not allowed with more than one rank; 0:"
            " it is of whole micro-batches"
        )
    if config.position_bias is not None:
        raise ValueError("model.position_bias: given with more than one rank is not allowed; absent")
