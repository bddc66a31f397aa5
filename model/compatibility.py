"""What of a run's configuration the weights depend on, and what changed since they were saved, in a sentence."""

from collections.abc import Iterator
from typing import Any

import msgspec

from model.config import ModelConfig
from stream.schema import SchemaConfig


def weights_depend_on(schema: SchemaConfig, config: ModelConfig) -> dict[str, Any]:
    """Returns what must not change while weights go on learning, as plain JSON.

    Learning rates, loss weights, admission, eviction and caches may change, and so may label windows and policies.
    """
    encoding = msgspec.to_builtins(config.encoding)
    for free in ("admission", "admission_ids", "crosses_admission", "cached_values"):
        del encoding[free]
    bias = config.position_bias
    depends = msgspec.to_builtins(
        {
            "scenarios": schema.scenarios,
            "tasks": tuple(schema.tasks),
            "features": {
                f"{side}.{name}": feature
                for side in ("user", "item", "context")
                for name, feature in sorted(getattr(schema.features, side).items())
            },
            "model": {
                "architecture": config.architecture,
                "network": config.network,
                "domain_gate": config.domain_gate,
                "sequence": config.sequence,
                "position_bias": bias and {name: getattr(bias, name) for name in ("max_position", "hidden", "context")},
                "encoding": encoding,
                "embedding": {"width": config.embedding.width, "counter_bits": config.embedding.admission.counter_bits},
            },
        }
    )
    # Through JSON, so that it compares equal with what comes back from a checkpoint (tuples become lists).
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(depends))
    return plain


def differences(saved: Any, configured: Any, path: str = "") -> Iterator[str]:
    """Yields each difference as "path: was x, is y".

    >>> list(differences({"tasks": ["click"], "w": {"d": 8}}, {"tasks": ["click"], "w": {"d": 16}}))
    ['w.d: was 8, is 16']
    """
    if isinstance(saved, dict) and isinstance(configured, dict):
        names = saved.keys() | configured.keys()
        if saved.get("architecture") != configured.get("architecture"):
            names = names - {"network"}  # of two architectures: all of it differs
        for name in sorted(names):
            inner = f"{path}.{name}" if path else name
            yield from differences(saved.get(name, "absent"), configured.get(name, "absent"), inner)
    elif saved != configured:
        yield f"{path}: was {saved}, is {configured}"
