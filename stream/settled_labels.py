"""Messages of the topic `examples` -> settled labels with the score that was served: what online metrics are made of.

Only settled kinds are the truth of a closed window, and every item and task has exactly one of them, under every
policy. The other columns of a message are not looked at. Letters: R requests (rows), N items.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stream.exceptions import DecodeError
from stream.schema import KIND_CODE, KINDS, SETTLED_KINDS

Labels = npt.NDArray[np.void]
"""Rows of `LABEL`."""
LABEL = np.dtype([("close_ms", "<i8"), ("version", "<i8"), ("score", "<f4"), ("label", "i1")])
"""When the label's window closed (slate + window + grace), the snapshot that served it, its score, and 0 or 1."""
Cell = tuple[str, str]
"""Scenario and task."""

_IS_SETTLED = np.isin(np.arange(len(KINDS)), [KIND_CODE[kind] for kind in SETTLED_KINDS])
"""By the kind's code."""


class SettledMessage(NamedTuple):
    """What one message says."""

    labels: dict[Cell, Labels]
    """Settled labels with a score, in the order of the message."""
    watermark_ms: int
    """Watermark of the joiner when it wrote the message's last row; -1 without one."""
    num_unscored: int
    """Settled labels left out because no score was logged with their impression."""


class _Policy(msgspec.Struct):
    window_ms: int
    grace_ms: int


def read_settled(message: bytes, tasks: Sequence[str]) -> SettledMessage:
    """Returns the settled labels of one message of `examples`.

    Raises:
        DecodeError: not Arrow, a column that is missing or of another type, a score or label that is none.
    """
    try:
        with pa.ipc.open_stream(pa.py_buffer(message)) as reader:
            batch = reader.read_next_batch()
        names = ["scenario", "ts", "emitted_watermark_ms", "snapshot", "item_id"]
        names += [f"{part}.{task}" for task in tasks for part in ("served", "label", "kind")]
        batch = batch.select(names)
        batch.validate(full=True)
        return _read(batch, batch.schema.metadata or {}, tasks)
    except (pa.ArrowException, msgspec.MsgspecError, LookupError, ValueError, TypeError, OSError, EOFError) as error:
        raise DecodeError(f"examples: {error}") from error
    except StopIteration as error:
        raise DecodeError("examples: no record batch; one is needed") from error


def _read(batch: Any, metadata: Mapping[bytes, bytes], tasks: Sequence[str]) -> SettledMessage:
    lengths_R = np.diff(batch["item_id"].offsets.to_numpy())
    ts_R, version_R = batch["ts"].to_numpy(), batch["snapshot"].to_numpy()
    encoded = batch["scenario"].dictionary_encode()
    scenario_N = np.repeat(encoded.indices.to_numpy(), lengths_R)
    scenarios = encoded.dictionary.to_pylist()
    labels_N = np.empty(len(scenario_N), LABEL)
    labels_N["version"] = np.repeat(version_R, lengths_R)
    found: dict[Cell, Labels] = {}
    num_unscored = 0
    for task in tasks:
        policy = msgspec.json.decode(metadata[f"policy.{task}".encode()], type=_Policy)
        score_N, label_N, kind_N = (_values(batch[f"{part}.{task}"]) for part in ("served", "label", "kind"))
        if (kind_N < 0).any():
            raise ValueError(f"kind.{task}: negative codes are not allowed")
        is_settled_N = _IS_SETTLED[kind_N]
        if not is_settled_N.any():
            continue
        is_scored_N = is_settled_N & ~np.isnan(score_N)
        num_unscored += int(is_settled_N.sum() - is_scored_N.sum())
        labels_N["close_ms"] = np.repeat(ts_R + (policy.window_ms + policy.grace_ms), lengths_R)
        labels_N["score"], labels_N["label"] = score_N, label_N
        _check(task, labels_N[is_scored_N])
        for index, scenario in enumerate(scenarios):
            labels = labels_N[is_scored_N & (scenario_N == index)]
            if len(labels):
                found[scenario, task] = labels
    watermarks_R = batch["emitted_watermark_ms"].to_numpy()
    return SettledMessage(found, int(watermarks_R[-1]) if len(watermarks_R) else -1, num_unscored)


def _values(array: Any) -> npt.NDArray[Any]:
    """Returns a list column item by item; NaN where a float is missing."""
    values: npt.NDArray[Any] = array.values.to_numpy(zero_copy_only=False)
    return values


def _check(task: str, labels: Labels) -> None:
    if not ((labels["score"] >= 0) & (labels["score"] <= 1)).all():
        raise ValueError(f"served.{task}: only probabilities are allowed")
    if not ((labels["label"] == 0) | (labels["label"] == 1)).all():
        raise ValueError(f"label.{task}: only 0 and 1 are allowed")
