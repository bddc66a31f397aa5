"""One version of learned weights as it lies in the store: a line with its sha256, then JSON. Written once."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from utility_blender.exceptions import BlenderVersionError

REASONS = ("missing", "hash", "format", "schema", "policy", "denied")
"""Why a version is not served: not in the store, torn, no version, of another schema, no policy, rolled back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlenderVersion:
    """Learned weights and what they come from. What share of the requests they serve is the pointer's business."""

    version: int
    """From 1 on; 0 means the production weights of the config."""
    base_version: int
    """Version whose weights the explored requests were drawn around; it serves whom the new one does not."""
    created_ms: int
    """Wall clock of the fit."""
    method: str
    """`blender.learn.method` it was fitted with."""
    tasks: tuple[str, ...]
    """In the order of the schema."""
    schema_hash: str
    """Of the run it belongs to."""
    scale: Mapping[str, Mapping[str, float]]
    """Scenario -> task -> what one unit of a score is. Frozen: weights mean nothing without it. Scenarios that are not
    named are served the production weights."""
    reward_version: str
    """Reward table it aims at (`RewardConfig.version`)."""
    first_snapshot: int
    """Oldest model version among its outcomes."""
    last_snapshot: int
    """Newest model version among its outcomes."""
    num_outcomes: int
    """Explored requests it was fitted and judged on."""
    policy: Mapping[str, Any]
    """The weights as a function of the context (`learned.policy_to_dict`)."""
    gate: Mapping[str, Any]
    """The verdict: `passed`, and a line per rule."""
    reference: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Scenario -> task -> histogram of the scores it was judged on, the latest ones (`score_shift.score_references`);
    may be empty, then nobody notices when they move away."""

    def __post_init__(self) -> None:
        if self.version < 1:
            raise ValueError(f"version: {self.version} is not allowed; at least 1")
        if not 0 <= self.base_version < self.version:
            raise ValueError(f"base_version: {self.base_version} is not allowed; 0 to {self.version - 1}")
        for scenario, scale in self.scale.items():
            if set(scale) != set(self.tasks) or not all(0 < value < math.inf for value in scale.values()):
                raise ValueError(f"scale.{scenario}: {dict(scale)} is not allowed; a finite number above 0 per task")

    @property
    def passed(self) -> bool:
        """Whether its gate let it through."""
        return self.gate.get("passed") is True

    def encode(self) -> bytes:
        """Returns the bytes that go to the store.

        Raises:
            ValueError: a number in it is not finite.
        """
        body = json.dumps(asdict(self), allow_nan=False, separators=(",", ":"), sort_keys=True).encode()
        return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def decode_version(data: bytes) -> BlenderVersion:
    """Returns the version that was encoded as `data`.

    Raises:
        BlenderVersionError: `hash` if the bytes are not what was written, `format` if they are no version.
    """
    digest, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise BlenderVersionError("hash", f"{len(data)} bytes do not match their sha256")
    try:
        found = json.loads(body)
        names = {f.name for f in fields(BlenderVersion)}
        return BlenderVersion(**{name: found[name] for name in names if name != "tasks"}, tasks=tuple(found["tasks"]))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise BlenderVersionError("format", f"no version of a blender: {type(error).__name__}: {error}") from error
