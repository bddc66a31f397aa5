"""Versions of learned weights for tests."""

from collections.abc import Mapping
from typing import Any

from utility_blender.version import BlenderVersion

TASKS = ("click", "order")
PASSED = {"passed": True, "reasons": [], "rules": []}


def some_version(
    version: int = 1, base: int = 0, gate: Mapping[str, Any] | None = None, **changes: Any
) -> BlenderVersion:
    """Returns a version whose gate has passed, with constant weights."""
    fields: dict[str, Any] = {
        "created_ms": 1_000 + version,
        "method": "static_mean",
        "tasks": TASKS,
        "schema_hash": "s",
        "scale": {"home": {"click": 0.1, "order": 0.01}},
        "reward_version": "12345678",
        "first_snapshot": 3,
        "last_snapshot": 9,
        "num_outcomes": 20_000,
        "policy": {
            "kind": "learned",
            "tasks": list(TASKS),
            "base": {"home": [0.1, 0.05 + version / 1_000]},
            "links": [],
        },
    } | changes
    return BlenderVersion(version=version, base_version=base, gate=PASSED if gate is None else gate, **fields)
