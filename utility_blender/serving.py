"""Learned weights while they serve: one version made ready, and which request gets which.

Shape letters: T tasks.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from utility_blender.bounds import Bounded, BoundsConfig
from utility_blender.contexts import Contexts, Floats
from utility_blender.exceptions import BlenderVersionError
from utility_blender.policy import Policy, StaticPolicy
from utility_blender.score_shift import ScoreReference, references_from
from utility_blender.version import BlenderVersion

Fallback = Literal["scenario", "missing", "error", "non_finite", "timeout", "shifted"]
"""Why the production weights serve instead of learned ones: the version does not know the scenario, the request lacks a
feature, computing them failed, gave no finite weights or took too long, or the scores have moved away."""


@dataclass(frozen=True, slots=True)
class ReadyVersion:
    """One version that can serve; never changed once built."""

    version: int
    policy: Policy
    """Within the bounds."""
    scale: Mapping[str, Floats]
    """What one unit of a score is, by scenario; the keys are the scenarios it serves."""
    references: Mapping[str, Sequence[ScoreReference]]
    """The scores it was learned on, by scenario and task; a scenario may be left out."""

    def weights(
        self, scenario: str, columns: Mapping[str, list[Any]] | None, budget_ms: float, busy_s: Callable[[], float]
    ) -> Floats | Fallback:
        """Returns weights_T, or why there are none; never raises.

        Args:
            scenario: Listed scenario of the request.
            columns: Its features by full name, one value each; None: it lacks one.
            budget_ms: Milliseconds of `busy_s` it may take.
            busy_s: The thread's processor time, in seconds.
        """
        if scenario not in self.scale:
            return "scenario"
        if columns is None:
            return "missing"
        start_s = busy_s()
        try:
            with np.errstate(all="ignore"):  # what is not finite is told apart below
                weights_T: Floats = self.policy.weights(Contexts(scenario=[scenario], columns=columns))[0]
        except Exception:  # whatever the policy trips over, the request is answered; the reason is counted
            return "error"
        if not np.isfinite(weights_T).all():
            return "non_finite"
        if (busy_s() - start_s) * 1000 > budget_ms:
            return "timeout"
        return weights_T


@dataclass(frozen=True, slots=True)
class Lanes:
    """What serves. Replaced as a whole, so a request sees one state."""

    stable: ReadyVersion | None = None
    """None: the production weights."""
    trial: ReadyVersion | None = None
    """A newer version that serves a share of the requests; None: nothing is on trial."""
    share: float = 1.0
    """Share of the requests that the newest version serves; below 1 while there is a `trial`."""

    @property
    def version(self) -> int:
        """Newest version that serves anybody; 0: none."""
        newest = self.trial or self.stable
        return newest.version if newest else 0

    def is_on_trial(self, request_id: str) -> bool:
        """Returns whether a request is in the trial's share: always the same answer, more requests as it grows."""
        if self.trial is None:
            return False
        digest = hashlib.blake2b(request_id.encode(), key=f"trial:{self.trial.version}".encode(), digest_size=8)
        return int.from_bytes(digest.digest(), "little") < self.share * 2.0**64


def made_ready(
    version: BlenderVersion,
    policy: Policy,
    static: Mapping[str, Floats],
    scale_T: Floats,
    tasks: tuple[str, ...],
    bounds: BoundsConfig,
) -> ReadyVersion:
    """Returns a version that can serve.

    Args:
        version: As stored.
        policy: Its weights.
        static: Production weights by scenario.
        scale_T: What one unit of a score is under those.
        tasks: In the order of the schema.
        bounds: What its weights may not do.

    Raises:
        BlenderVersionError: `schema`: made for other tasks; `policy`: its weights are not T finite numbers; `format`:
            its references are none.
    """
    if version.tasks != tasks:
        raise BlenderVersionError("schema", f"made for tasks {', '.join(version.tasks)}, not {', '.join(tasks)}")
    scale = {name: np.array([version.scale[name][task] for task in tasks]) for name in version.scale if name in static}
    same_rankings = StaticPolicy({name: static[name] * scale[name] / scale_T for name in scale})
    try:
        references = references_from(version.reference, tasks)
    except (KeyError, TypeError, ValueError) as error:
        raise BlenderVersionError("format", f"version {version.version} has no score references: {error!r}") from error
    ready = ReadyVersion(version.version, Bounded(policy, same_rankings, bounds), scale, references)
    for name in scale:
        weights = ready.weights(name, {}, bounds.budget_ms, lambda: 0.0)
        if isinstance(weights, str):
            raise BlenderVersionError("policy", f"version {version.version} has no weights for {name}: {weights}")
    return ready
