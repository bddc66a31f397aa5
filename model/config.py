"""A model's configuration: encoding, embedding, network, loss, optimiser."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from model.aesm2 import AESM2Config
from model.architectures import NETWORKS, Architecture
from model.assembly import InputLayout
from model.attention_mmoe import AttentionMMoEConfig
from model.calibrator import CalibrationConfig
from model.closeup import CloseupConfig
from model.domain_gate import DomainGate
from model.embedding_config import EmbeddingConfig
from model.epnet import EPNetConfig
from model.esmm import ESMMConfig
from model.features import EncodingConfig, Field
from model.growth import GrowthConfig
from model.hinet_config import HiNetConfig
from model.hmoe import HMoEConfig
from model.losses import LossConfig
from model.mmoe import MMoEConfig
from model.network import Network, NetworkShape
from model.optim import OptimConfig
from model.pepnet import PEPNetConfig
from model.ple_levels import PLEConfig
from model.position_bias import PositionBiasConfig, PositionBiased, PositionTower
from model.precision import Precision
from model.score_regularization import ScoreRegularizationConfig
from model.sequence_blocks import SequenceBlocks, SequenceBlocksConfig
from model.shared_bottom import SharedBottomConfig
from model.star import STARConfig

Preset = Literal["small", "published", "custom"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What is learned, and how."""

    architecture: Architecture = "hinet"
    """The network."""
    preset: Preset = "small"
    """Size of the network: `small`, `published` (the paper's; HiNet only), or `custom`, as the section named after the
    architecture says. That section is given with `custom` only, and then always."""
    hinet: HiNetConfig | None = None
    """HiNet's widths and switches."""
    shared_bottom: SharedBottomConfig | None = None
    """Shared-Bottom's widths."""
    mmoe: MMoEConfig | None = None
    """MMoE's widths and switch to OMoE."""
    attention_mmoe: AttentionMMoEConfig | None = None
    """The attention-based MMoE's widths."""
    ple: PLEConfig | None = None
    """PLE's levels and widths."""
    hmoe: HMoEConfig | None = None
    """HMoE's widths."""
    star: STARConfig | None = None
    """STAR's widths and statistics."""
    esmm: ESMMConfig | None = None
    """ESMM's funnel and widths."""
    aesm2: AESM2Config | None = None
    """AESM2's widths, counts and selection."""
    pepnet: PEPNetConfig | None = None
    """PEPNet's fields and widths."""
    closeup: CloseupConfig | None = None
    """The closeup ranker's widths and switches."""
    domain_gate: EPNetConfig | None = None
    """PEPNet's gate on the input by scenario, in front of the network; absent: none. Not with `architecture: pepnet`,
    which has its own."""
    sequence: SequenceBlocksConfig | None = None
    """The user's last actions, read one by one, as further blocks of the network's input; absent: only pooled. Not with
    `architecture: closeup`, which reads them itself."""
    position_bias: PositionBiasConfig | None = None
    """A tower that takes the effect of the position shown off the network, in training only; absent: none."""
    precision: Precision = "float32"
    """Type of the operands of the network's matrix products, in training and serving; `bfloat16` is about 1.5 times as
    fast where the CPU has such products, and a little coarser. Everything else stays float32."""
    encoding: EncodingConfig = EncodingConfig()
    """From features to keys."""
    embedding: EmbeddingConfig = EmbeddingConfig()
    """From keys to rows."""
    loss: LossConfig = LossConfig()
    """Weights in the loss."""
    score_regularization: ScoreRegularizationConfig = ScoreRegularizationConfig()
    """How far scores are held to those of an older model."""
    calibration: CalibrationConfig = CalibrationConfig()
    """How served scores are calibrated."""
    optim: OptimConfig = OptimConfig()
    """Learning rates and clipping."""
    growth: GrowthConfig = GrowthConfig()
    """Scenarios that are not listed."""
    priors: dict[str, float] = field(default_factory=dict)
    """Share of positives that each task is expected to have, between 0 and 1: where its logits start. A task not named
    starts near one half, and a rare one then spends its first examples on finding out how rare it is."""

    def __post_init__(self) -> None:
        if self.embedding.hot_rows is not None and self.score_regularization.teacher in ("snapshot", "ema"):
            teacher = self.score_regularization.teacher
            raise ValueError(
                f"score_regularization.teacher: {teacher} is not allowed with embedding.hot_rows; none, served"
            )
        if self.architecture not in NETWORKS:
            raise ValueError(f"architecture: {self.architecture} is not allowed; {', '.join(NETWORKS)}")
        for task, prior in self.priors.items():
            if not 0 < prior < 1:
                raise ValueError(f"priors.{task}: {prior} is not allowed; between 0 and 1")
        if self.domain_gate is not None and self.architecture == "pepnet":
            raise ValueError("domain_gate: given with architecture: pepnet is not allowed; pepnet.domain_gate")
        if self.sequence is not None and self.architecture == "closeup":
            raise ValueError("sequence: given with architecture: closeup is not allowed; closeup.sequence")
        if self.preset == "published" and not hasattr(NETWORKS[self.architecture].config, "published"):
            raise ValueError(f"preset: published is not allowed with architecture: {self.architecture}; small, custom")
        for name in NETWORKS:
            is_given, is_needed = getattr(self, name) is not None, name == self.architecture and self.preset == "custom"
            if is_given != is_needed:
                given = "given" if is_given else "absent"
                raise ValueError(
                    f"{name}: {given} with architecture: {self.architecture}, preset: {self.preset} is not allowed;"
                    " the architecture's section goes with preset: custom, no other section"
                )

    @property
    def network(self) -> Any:
        """The configuration of the architecture's network: the preset, or the custom one."""
        config = NETWORKS[self.architecture].config
        if self.preset == "custom":
            return getattr(self, self.architecture)
        return config() if self.preset == "small" else config.published()

    def input_layout(self, fields: Sequence[Field]) -> InputLayout:
        """Returns where the embeddings of a model's fields go in the input."""
        return InputLayout(fields, width=self.embedding.width, interaction=self.encoding.history_interaction)

    def build_network(self, shape: NetworkShape, *, seed: int | None) -> Network:
        """Returns the network; with `seed` None its parameters are undrawn, to be loaded.

        Raises:
            ValueError: the network does not fit the shape (a task or field that it names is not there).
        """

        def build(shape: NetworkShape) -> Network:
            net: Network = NETWORKS[self.architecture].build(self.network, shape, seed=seed)
            return net if self.domain_gate is None else DomainGate(self.domain_gate, net, seed=seed)

        net = build(shape) if self.sequence is None else SequenceBlocks(self.sequence, shape, build, seed=seed)
        if self.position_bias is None:
            return net
        return PositionBiased(net, shape, PositionTower(self.position_bias, shape, seed=seed))
