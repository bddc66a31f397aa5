"""What a trainer counts and what it is at now: the source of its metrics."""

from dataclasses import dataclass

from model.step_report import StepReport

KEPT_COUNTS = (
    "messages",
    "examples",
    "steps",
    "skipped",
    "dead_letters",
    "labels_weighed",
    "labels_guarded",
    "labels_unscored",
    "scores_dropped",
    "policies_begun",
    "scenarios_added",
    "unknown_rows",
    "held",
    "quarantined",
)


@dataclass(slots=True)
class TrainerStats:
    """Counts of one trainer. Those in `KEPT_COUNTS` go on over restarts, the others start with the process."""

    messages: int = 0
    """Messages of examples that were learned or set aside."""
    examples: int = 0
    """Examples (one item of a slate with its labels) in micro-batches."""
    steps: int = 0
    """Steps made."""
    skipped: int = 0
    """Micro-batches that the finite guard refused."""
    dead_letters: int = 0
    """Messages of examples that could not be decoded; read again after a restart, they count again."""
    repeated: int = 0
    """Messages of examples that came again although they were learned, and were ignored."""
    checkpoints: int = 0
    """Checkpoints written."""
    checkpoint_failures: int = 0
    """Checkpoints that could not be written: disk full, folder gone."""
    dense_clipped: int = 0
    """Steps whose dense gradient was clipped."""
    weights_capped: int = 0
    """Example weights that were cut to their maximum."""
    positives_held_back: int = 0
    """Positive labels that were not learned, because their scenario and task had no negative yet."""
    labels_weighed: int = 0
    """Labels whose weight their label policy computed (`fnw`, `es_dfm` and others; `wait` and `eager` compute none)."""
    labels_guarded: int = 0
    """Those of them with an estimate or a weight outside its valid range, cut to it; above 1 % look for the cause."""
    labels_unscored: int = 0
    """Settled labels that are in no figure, because neither a served nor a kept score of them was there."""
    scores_dropped: int = 0
    """Kept scores that were refused for want of room, or given up because their settled label never came."""
    heads_skipped: int = 0
    """Batches whose settled labels the auxiliary heads of a task left out, because something was not finite."""
    policies_begun: int = 0
    """Tasks whose auxiliary heads have learned from enough positives, so that their policy took over from `wait`."""

    scenarios_added: int = 0
    """Scenarios that are not listed and became part of the model (`unknown_scenario: add`)."""
    unknown_rows: int = 0
    """Examples of scenarios that are not part of the model, learned as the default one's."""

    held: int = 0
    """Examples that were looked at and not learned, because data or labels were not in order."""
    quarantined: int = 0
    """Messages of examples that a rollback put in quarantine: skipped."""

    def count(self, report: StepReport) -> None:
        """Counts a micro-batch that was not skipped."""
        self.steps += report.made
        self.dense_clipped += report.dense_clipped
        self.weights_capped += report.weights_capped
        self.positives_held_back += report.positives_held_back
        self.labels_weighed += report.labels_weighed
        self.labels_guarded += report.labels_guarded
        self.heads_skipped += report.heads_skipped
        self.policies_begun += len(report.policies_begun)


@dataclass(slots=True)
class TrainerGauges:
    """What a trainer is at now."""

    loss: float = 0.0
    """Of the last step."""
    grad_norm: float = 0.0
    """Of the last step: dense, before clipping."""
    watermark_ms: int = 0
    """Labels up to here are learned, in every partition that has brought any."""
    guarded_share: float = 0.0
    """Share of the weighed labels that were guarded, over all time."""
    checkpoint_ms: int = 0
    """How long the last checkpoint kept the trainer from training."""
