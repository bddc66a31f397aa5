"""A model's configuration: encoding, embedding, network, loss, optimiser."""

from dataclasses import dataclass, field
from typing import Literal

from model.embedding import EmbeddingConfig
from model.features import EncodingConfig
from model.hinet import HiNetConfig
from model.losses import LossConfig
from model.optim import OptimConfig

Preset = Literal["small", "published", "custom"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What is learned, and how."""

    architecture: Literal["hinet"] = "hinet"
    """The network."""
    preset: Preset = "small"
    """Size of the network: `small`, `published` (the paper's), or `custom`, as `hinet` says."""
    hinet: HiNetConfig | None = None
    """The network's widths; only, and then always, with `preset: custom`."""
    encoding: EncodingConfig = EncodingConfig()
    """From features to keys."""
    embedding: EmbeddingConfig = EmbeddingConfig()
    """From keys to rows."""
    loss: LossConfig = LossConfig()
    """Weights in the loss."""
    optim: OptimConfig = OptimConfig()
    """Learning rates and clipping."""
    priors: dict[str, float] = field(default_factory=dict)
    """Share of positives that each task is expected to have, between 0 and 1: where its logits start. A task not named
    starts near one half, and a rare one then spends its first examples on finding out how rare it is."""

    def __post_init__(self) -> None:
        for task, prior in self.priors.items():
            if not 0 < prior < 1:
                raise ValueError(f"priors.{task}: {prior} is not allowed; between 0 and 1")
        if (self.hinet is not None) != (self.preset == "custom"):
            given = "given" if self.hinet is not None else "absent"
            raise ValueError(
                f"hinet: {given} with preset: {self.preset} is not allowed; give it with preset: custom only"
            )

    @property
    def network(self) -> HiNetConfig:
        """The widths of the preset, or the custom ones."""
        if self.hinet is not None:
            return self.hinet
        return HiNetConfig() if self.preset == "small" else HiNetConfig.published()
