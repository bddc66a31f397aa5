"""What `freshrank snapshot` says and does, apart from the command line."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.serving import ServingModel
    from model.snapshot import Manifest
    from model.store import SnapshotStore
    from stream.schema import SchemaConfig


def snapshot_lines(store: "SnapshotStore", model: str, *, with_reasons: bool = False) -> Iterator[str]:
    """Yields a line per version that is kept, per rejected one and per rollback."""
    live, stable, denied = store.pointer(), store.pointer("stable"), store.denied()
    if live is None:
        yield f"{model}: no snapshot yet"
    for version in store.versions():
        manifest = store.manifest(version)
        if manifest is None:  # retired while we look
            continue
        mark = "*" if live is not None and version == live.version else " "
        base = f" on {manifest.base_version}" if manifest.kind == "delta" else ""
        about = f"step {manifest.step}  {manifest.payload_bytes:,} bytes  run {manifest.run_id}"
        lane = "  stable lane" if stable is not None and stable != live and version == stable.version else ""
        yield f"{mark} {version}  {manifest.kind}{base}  {about}{lane}{'  denied' if version in denied else ''}"
    for rejection in store.rejected():
        yield f"- {rejection.manifest.version}  refused: {rejection.reason}"
        if with_reasons:
            for finding in rejection.findings:
                if finding.state != "pass":
                    yield f"    {finding.check}  {finding.state}  {finding.text}"
    if with_reasons:
        for rollback in store.rollbacks():
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(rollback.at_ms / 1_000))
            gone = ", ".join(map(str, rollback.denied)) or "none"
            told = f"rolled back to {rollback.target} at {at} UTC, denied {gone}: {rollback.reason}"
            yield f"< {rollback.version}  {told}"


def report_lines(store: "SnapshotStore", version: int) -> Iterator[str]:
    """Yields what is known of one version: its manifest, its metrics, and what the gate said if it was refused.

    Raises:
        SnapshotMissingError: the store does not keep it.
    """
    manifest = find(store, version)
    base = f" on {manifest.base_version}" if manifest.kind == "delta" else ""
    yield f"version {version}  {manifest.kind}{base}  step {manifest.step}  {manifest.payload_bytes:,} bytes"
    yield f"epoch {manifest.epoch}  run {manifest.run_id}  config {manifest.config_hash}  schema {manifest.schema_hash}"
    if version in store.denied():
        yield "denied"
    for task, by_scenario in manifest.metrics.items():
        for scenario, figures in by_scenario.items():
            told = "  ".join(f"{name} {value:.4g}" for name, value in figures.items() if value is not None)
            yield f"  {task} {scenario}: {told}"
    for rejection in store.rejected():
        if rejection.manifest.version == version:
            yield f"refused: {rejection.reason}"
            for finding in rejection.findings:
                yield f"  {finding.check}  {finding.state}  {finding.text}"


def differences(schema: "SchemaConfig", store: "SnapshotStore", first: int, second: int) -> Iterator[str]:
    """Yields how far two versions are apart: rows, and distances of rows and of dense weights.

    Raises:
        SnapshotMissingError: the store does not keep one of them, or what it is built on.
    """
    import numpy as np

    one, two = (model_of(schema, store, find(store, version)).tensors() for version in (first, second))
    row_of = {name: dict(zip(model["rows.keys"].tolist(), range(len(model["rows.keys"])), strict=True))
              for name, model in (("one", one), ("two", two))}  # fmt: skip
    both = sorted(row_of["one"].keys() & row_of["two"].keys())
    old = one["rows.weights"].float().numpy()[[row_of["one"][key] for key in both]]
    new = two["rows.weights"].float().numpy()[[row_of["two"][key] for key in both]]
    num_changed = int((old != new).any(axis=1).sum()) if both else 0
    yield f"rows    {len(row_of['one']):,} -> {len(row_of['two']):,}  ({len(both):,} in both, {num_changed:,} changed)"
    yield f"rows    distance {np.linalg.norm(new - old):.4g} of {np.linalg.norm(old):.4g}"
    dense = sorted(
        name for name in one.keys() & two.keys() if name.startswith("dense.") and one[name].is_floating_point()
    )
    moved = {name: float((two[name] - one[name]).norm()) for name in dense if one[name].shape == two[name].shape}
    size = sum(float(one[name].norm()) ** 2 for name in moved) ** 0.5
    yield f"dense   distance {sum(d**2 for d in moved.values()) ** 0.5:.4g} of {size:.4g}, {len(moved)} tensors"
    for name, distance in sorted(moved.items(), key=lambda entry: -entry[1])[:3]:
        yield f"        {name.removeprefix('dense.')}  {distance:.4g} of {float(one[name].norm()):.4g}"


def promoted_by_hand(schema: "SchemaConfig", store: "SnapshotStore", version: int, now_ms: int) -> "Manifest":
    """Serves a rejected version as a full one under a new number and epoch. Returns its manifest.

    Raises:
        SnapshotMissingError: it was not rejected, or is not kept any more.
        SnapshotError: it must not be served by anybody: torn, or not finite.
    """
    import msgspec

    from model.exceptions import SnapshotMissingError
    from model.snapshot import encode_payload, payload_sha256

    rejected = {rejection.manifest.version: rejection.manifest for rejection in store.rejected()}
    if version not in rejected:
        allowed = ", ".join(map(str, sorted(rejected))) or "none"
        raise SnapshotMissingError(f"version {version} is not a rejected one; rejected ones that are kept: {allowed}")
    payload = encode_payload(model_of(schema, store, rejected[version]).tensors())
    manifest = msgspec.structs.replace(
        rejected[version], version=store.last_version() + 1, base_version=0, kind="full", created_ms=now_ms,
        epoch=store.next_epoch(), payload_sha256=payload_sha256(payload), payload_bytes=len(payload),
    )  # fmt: skip
    store.put(manifest, payload)
    store.promote(manifest)
    return manifest


def find(store: "SnapshotStore", version: int) -> "Manifest":
    """Returns the manifest of a version, live once or rejected.

    Raises:
        SnapshotMissingError: the store keeps none.
    """
    from model.exceptions import SnapshotMissingError

    manifest = store.manifest(version)
    rejected = (rejection.manifest for rejection in store.rejected() if rejection.manifest.version == version)
    manifest = manifest if manifest is not None else next(rejected, None)
    if manifest is None:
        raise SnapshotMissingError(f"version {version} is not in the store")
    return manifest


def model_of(schema: "SchemaConfig", store: "SnapshotStore", manifest: "Manifest") -> "ServingModel":
    """Returns the model of a version, as a ranker would build it.

    Raises:
        SnapshotMissingError, SnapshotError: something on the way there is missing, torn or not finite.
    """
    from model.exceptions import SnapshotGapError
    from model.store import chain_to
    from ranker.live import next_live

    held = None
    for step in chain_to(store, manifest):
        held = next_live(schema, held, step, store.payload(step))
    if held is None:
        raise SnapshotGapError(f"version {manifest.version} cannot be reached")
    return held.model
