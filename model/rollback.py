"""Back to older weights: the pointer at once, the trainer when it starts again.

1. an older full version is put once more, under a new number
2. one atomic act of the store moves both lanes there under a higher epoch, and denies all versions in between
3. the trainer that published them is overtaken: it stops, and starts again from its newest checkpoint that is not newer
   than the target; offsets in quarantine are skipped and counted

A denied version never serves again, is no base, and must teach nobody.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from model.checkpoint import Checkpoint, CheckpointManifest, checkpoint_paths
from model.checkpoint_load import check_checkpoint, whole_checkpoints
from model.exceptions import CheckpointCorruptError, SnapshotMissingError
from model.ranks import Ranks
from model.snapshot import Manifest
from model.store import Rollback, SnapshotStore

logger = logging.getLogger(__name__)


def full_versions(store: SnapshotStore) -> list[Manifest]:
    """Returns the full versions that a rollback may go to, the newest last."""
    denied = store.denied()
    kept = (store.manifest(version) for version in store.versions() if version not in denied)
    return [manifest for manifest in kept if manifest is not None and manifest.kind == "full"]


def roll_back_to(
    store: SnapshotStore,
    target: int,
    *,
    reason: str,
    now_ms: int,
    quarantine: Mapping[int, tuple[int, int]] | None = None,
    hold: bool = False,
) -> Manifest:
    """Returns the manifest that both lanes serve from now on: the weights of `target` under a new number and epoch.

    Raises:
        SnapshotMissingError: `target` is not kept as a full version, or was itself rolled back.
    """
    fulls = {manifest.version: manifest for manifest in full_versions(store)}
    if target not in fulls:
        why = "was rolled back" if target in store.denied() else "is not kept as a full one"
        allowed = ", ".join(map(str, fulls)) or "none"
        raise SnapshotMissingError(f"version {target} {why}; full versions that are kept: {allowed}")
    payload = store.payload(fulls[target])
    epoch = store.next_epoch()  # from here on the trainer that runs publishes no more
    denied = store.denied()
    manifest = msgspec.structs.replace(
        fulls[target],
        version=store.last_version() + 1,
        epoch=epoch,
        created_ms=now_ms,
        feedback_ms=[],
        feedback_joined_ms=[],
        feedback_trained_ms=[],
    )
    rollback = Rollback(
        version=manifest.version,
        target=target,
        denied=[version for version in store.versions() if version > target and version not in denied],
        epoch=epoch,
        reason=reason,
        at_ms=now_ms,
        quarantine=dict(quarantine or {}),
        hold=hold,
    )
    store.put(manifest, payload)  # 1
    store.roll_back(manifest, rollback)  # 2
    logger.warning("Rolled back to=%d as=%d denied=%s reason=%s", target, manifest.version, rollback.denied, reason)
    return manifest


def checkpoint_after(folder: Path, rollback: Rollback | None, ranks: Ranks | None = None) -> Checkpoint | None:
    """Returns the newest whole checkpoint that goes on from here; None if there is none: the log is read anew.

    Without a rollback the newest. After one: the newest that was written since, or else the newest that is not newer
    than its target. All ranks call it.
    """
    for checkpoint in whole_checkpoints(folder, ranks):
        if rollback is None or _goes_on_from(checkpoint.manifest, rollback):
            return checkpoint
        logger.warning(
            "Skipping a checkpoint that was rolled back step=%d version=%d",
            checkpoint.manifest.step, checkpoint.manifest.version,
        )  # fmt: skip
    return None


def has_checkpoint_before(folder: Path, version: int) -> bool:
    """Returns whether there is something to restore for a rollback to `version`."""
    for path in checkpoint_paths(folder):
        try:
            if check_checkpoint(path).version <= version:
                return True
        except CheckpointCorruptError as error:
            logger.warning("A broken checkpoint path=%s error=%s", path, error)
    return False


def _goes_on_from(manifest: CheckpointManifest, rollback: Rollback) -> bool:
    return manifest.rollback_epoch >= rollback.epoch or manifest.version <= rollback.target
