"""What of a trainer a checkpoint holds, and how a trainer becomes again what it was."""

from dataclasses import dataclass
from typing import Any

from model.checkpoint import Checkpoint, CheckpointManifest
from model.compatibility import differences
from model.exceptions import CheckpointMismatchError
from model.gate import PublishGate
from model.intake import Intake
from model.progressive import ProgressiveMetrics
from model.trained_model import TrainedModel
from model.trainer_stats import KEPT_COUNTS, TrainerStats


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerState:
    """The parts of a trainer that go on over restarts, and the configuration they depend on."""

    model: TrainedModel
    metrics: ProgressiveMetrics
    gate: PublishGate
    intake: Intake
    stats: TrainerStats
    schema_hash: str
    config_hash: str
    depends_on: dict[str, Any]
    """What of the configuration the weights cannot do without (`model.compatibility`)."""

    def checkpoint(self, *, version: int, epoch: int, rollback_epoch: int) -> Checkpoint:
        """Returns it all as a checkpoint; `version` and `epoch` are the publisher's last."""
        manifest = CheckpointManifest(
            step=self.model.num_steps,
            positions=self.intake.positions,
            watermarks_ms=self.intake.watermarks_ms,
            version=version,
            epoch=epoch,
            schema_hash=self.schema_hash,
            config_hash=self.config_hash,
            depends_on=self.depends_on,
            learner_meta=self.model.state_meta(),
            counters={name: getattr(self.stats, name) for name in KEPT_COUNTS},
            rollback_epoch=rollback_epoch,
        )
        cold = self.model.table.cold
        return Checkpoint(
            manifest,
            self.model.state(),
            self.metrics.state() | self.gate.state_arrays(),
            save_cold=None if cold is None else cold.save,
        )

    def take_up(self, checkpoint: Checkpoint) -> None:
        """Makes the parts what they were.

        Raises:
            CheckpointMismatchError: it is of a config that these weights cannot follow; says what changed.
        """
        manifest = checkpoint.manifest
        changed = list(differences(manifest.depends_on, self.depends_on))
        if changed:
            raise CheckpointMismatchError(
                f"the checkpoint of step {manifest.step} cannot be continued, the config changed: {'; '.join(changed)}"
            )
        try:
            self.model.load_state(checkpoint.tensors, manifest.learner_meta)
        except ValueError as error:
            raise CheckpointMismatchError(f"the checkpoint of step {manifest.step} does not fit: {error}") from error
        for name in self.model.registry.names[len(self.metrics.scenarios) :]:
            self.metrics.add_scenario(name)
            self.gate.add_scenario(name)
        self.metrics.load_state(checkpoint.metrics)
        self.gate.load_state(checkpoint.metrics)
        self.intake.start_at(manifest.positions, manifest.watermarks_ms)
        for name, count in manifest.counters.items():
            setattr(self.stats, name, count)
