"""Settings of the publish gate. A limit of null switches its check off."""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

OnFailure = Literal["block", "rollback"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """What a version must be before anybody serves it (level 0), and the data and labels it learns from (level 1)."""

    warm_up_rows: int = 200_000
    """Rows a model must have learned before its drift, data and metrics are judged; at least 0. Checks against an hour
    ago look at versions that had learned ten times as many."""
    probe_requests: int = 64
    """Recent slates per scenario that every version is scored on; 0: no probe set, so no drift and no churn."""
    probe_refresh_ms: int = 86_400_000
    """How long a probe set stays the same; at least 1. It is renewed when a full version goes live."""
    psi_warn: float | None = 0.1
    """Population stability index of the probe scores against the last promoted version that is only said; above 0."""
    psi: float | None = 0.25
    """The same that blocks; above 0."""
    psi_hour: float | None = 0.25
    """The same against the scores of an hour ago; above 0."""
    psi_logit: float = 1.0
    """Root mean square of the logits' change below which an index never blocks, nor below twice the largest of the last
    100 versions: where scores lie close together an index calls any change large; at least 0. Against an hour ago, and
    before there were 20 versions, it is twice as much."""
    churn_factor: float | None = 3.0
    """Probe requests with another first item may be so many times their median share over past versions, or half more
    than the most of the last 100; above 0."""
    churn_least: float = 0.1
    """A share that never blocks, for the median of a calm model is near 0; from 0 to 1."""
    churn_most: float = 0.5
    """A share that always blocks, up to half more after a pause; from 0 to 1."""
    rows_factor: float | None = 10.0
    """A delta may hold so many times the usual rows per step; above 0."""
    window_ms: int = 10_000
    """Data and labels are judged every so often; at least 1."""
    window_labels: int = 50_000
    """And whenever so many labels have come; at least 1."""
    label_rate_ratio: float | None = 1.6
    """Label rates may differ from those of past windows, or of the same hour of past days, by this factor; above 1."""
    label_rate_z: float = 3.0
    """And only if beyond chance by so many standard errors; at least 0."""
    deflate: float = 2.0
    """Labels that count as one in the standard errors of label rates and NE, for those of one slate go together; at
    least 1."""
    missing_points: float | None = 0.1
    """Rise of the share of missing values of a field; above 0."""
    unknown_points: float | None = 0.1
    """Rise of the share of values of a field that have no row; above 0."""
    feature_psi: float | None = 0.5
    """Population stability index of what comes with a request (user, context); above 0."""
    shown_psi: float | None = 1.0
    """The same of what the model itself moves: items shown, and histories; above 0."""
    rows_ratio: float | None = 10.0
    """Rows per second of event time may differ from those of past windows by this factor; above 1."""
    user_ratio: float | None = 3.0
    """Rows of the user of a row, on average, may be so many times those of past windows: bots; above 1."""
    ahead_share: float | None = 0.01
    """Share of rows whose impression is later than the clock by `ahead_ms`; above 0."""
    ahead_ms: int = 60_000
    """What of that is still in order; at least 0."""
    ne: float | None = 1.0
    """Normalized entropy of closed cohorts, scored before they are learned: significantly above it blocks; above 0."""
    ne_margin: float | None = 0.005
    """The same minus that of the served scores of the same rows: significantly above it blocks; at least 0."""
    ne_positives: int = 2_000
    """Positives of a scenario and task from which the difference is judged; at least 1."""
    calibration: float | None = 0.7
    """|ln(sum of scores / sum of labels)| of closed cohorts, but at least 4 / sqrt(positives); above 0."""
    min_positives: int = 200
    """Positives of a scenario and task from which they are judged; at least 1."""
    max_unjudged_ms: int | None = 3_600_000
    """A model whose NE nobody could judge for so long is not published any more; at least 1."""
    freeze_after: int = 10
    """Rejected versions in a row after which nothing is published until a window of data and labels is in order."""
    on_failure: OnFailure = "rollback"
    """What follows a window that fails: `block`, no version goes live; or `rollback` as well, to the last full version
    of before, and nothing is learned until the data are in order. Without checkpoints, or in `deterministic` mode, it
    is `block`."""
    adopt_ms: int = 600_000
    """A shift of the data that lasts so long is the new normal; at least 1."""

    def __post_init__(self) -> None:
        above = {"label_rate_ratio": 1, "rows_ratio": 1, "user_ratio": 1}
        at_least = {
            "label_rate_z": 0,
            "deflate": 1,
            "ne_margin": 0,
            "psi_logit": 0,
            "warm_up_rows": 0,
            "probe_requests": 0,
            "ahead_ms": 0,
        }
        shares = ("churn_least", "churn_most")
        for one in fields(self):
            value = getattr(self, one.name)
            if value is None or one.name == "on_failure":
                continue
            if not math.isfinite(value):
                raise ValueError(f"{one.name}: {value} is not allowed; a finite number")
            if one.name in shares:
                if not 0 <= value <= 1:
                    raise ValueError(f"{one.name}: {value} is not allowed; from 0 to 1")
            elif one.name in at_least or isinstance(value, int) and one.name not in above:
                least = at_least.get(one.name, 1)
                if value < least:
                    raise ValueError(f"{one.name}: {value} is not allowed; at least {least}")
            elif value <= above.get(one.name, 0):
                raise ValueError(f"{one.name}: {value} is not allowed; above {above.get(one.name, 0)}")
        if self.on_failure not in get_args(OnFailure):
            raise ValueError(f"on_failure: {self.on_failure!r} is not one of {', '.join(get_args(OnFailure))}")


OFF = GateConfig(
    probe_requests=0,
    psi_warn=None,
    psi=None,
    psi_hour=None,
    churn_factor=None,
    rows_factor=None,
    label_rate_ratio=None,
    missing_points=None,
    unknown_points=None,
    feature_psi=None,
    shown_psi=None,
    rows_ratio=None,
    user_ratio=None,
    ahead_share=None,
    ne=None,
    ne_margin=None,
    calibration=None,
    max_unjudged_ms=None,
)
"""Only what must always hold: finite values, the order of versions, the base of a delta."""
