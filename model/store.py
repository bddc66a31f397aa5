"""Where snapshots go and come from: the protocol, its in-memory implementation, and the way back to a full snapshot.

The order of a publish, here and in `model.store_redis`:

1. payload
2. manifest
3. gate passed (the trainer's business: `model.gate`; a failed one is `reject`ed)
4. one atomic act moves the pointer (only forward, only by the holder of the highest epoch) and announces it

A crash between any two of them leaves the pointer on the version before. Keys carry version and epoch and are written
once, so a paused old trainer that wakes up cannot overwrite what a newer one has published.

Two lanes follow one chain of versions. `canary` serves the newest promoted version; `stable` serves the newest released
one, which is the same unless promotions hold it back. A rollback moves both to a copy of an older full version under a
new number and a new epoch, and denies for good what lies between (`model.rollback`).
"""

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import msgspec

from model.exceptions import (
    PointerOrderError,
    SnapshotGapError,
    SnapshotLengthError,
    SnapshotMissingError,
    StaleEpochError,
    StoreError,
)
from model.gate_report import Finding
from model.payload_view import Payload
from model.snapshot import Manifest, SnapshotKind

Lane = Literal["stable", "canary"]
FIRST_ANNOUNCEMENT = "0-0"
"""Asks for every announcement the store still holds."""


class Announcement(NamedTuple):
    """One move of the pointer. Ids are opaque and rise."""

    id: str
    version: int
    kind: SnapshotKind


class Rejection(msgspec.Struct, frozen=True):
    """A version that failed its gate, kept for inspection."""

    manifest: Manifest
    reason: str
    findings: list[Finding] = []
    """What each check of the gate said."""


class Rollback(msgspec.Struct, frozen=True, kw_only=True):
    """One move of the pointer back to older weights."""

    version: int
    """The new number of the old weights."""
    target: int
    """The full version they were published as before."""
    denied: list[int]
    """Versions that were live and must never serve, teach or be a base again."""
    epoch: int
    """Of the new version: whoever publishes with an earlier one is overtaken."""
    reason: str
    at_ms: int
    """Processing time."""
    quarantine: dict[int, tuple[int, int]] = {}
    """Per partition of `examples`, offsets [from, to) that the trainer skips and counts."""
    hold: bool = False
    """Whether the trainer looks at what follows without learning it, until its gate finds the data in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """What a store keeps, and for how long."""

    prefix: str = "freshrank:model"
    """In front of every key, so that several runs can share a Redis."""
    keep_fulls: int = 5
    """Full snapshots kept, each with the deltas after it: how far a rollback can go; at least 1."""
    keep_rejected: int = 20
    """Rejected versions kept for inspection, and rollbacks; at least 1."""
    keep_announcements: int = 1_000
    """Announcements kept (about); at least 1."""
    candidate_ttl_s: int = 86_400
    """Seconds a version that never became live (crash, failed gate) is kept; at least 1."""
    retired_ttl_s: int = 60
    """Seconds a version beyond `keep_fulls` can still be fetched by a reader that is just about to; at least 1."""
    max_payload_bytes: int = 536_870_912
    """Largest payload that is fetched, in bytes: a bound on what a wrong manifest can make a reader do; at least 1. (A
    value of Redis holds no more than the default.)"""
    timeout_ms: int = 2_000
    """Milliseconds after which a store that does not answer counts as unavailable; at least 10."""

    def __post_init__(self) -> None:
        if not self.prefix:
            raise ValueError("prefix: must not be empty")
        for name, least in (
            ("keep_fulls", 1),
            ("keep_rejected", 1),
            ("keep_announcements", 1),
            ("candidate_ttl_s", 1),
            ("retired_ttl_s", 1),
            ("max_payload_bytes", 1),
            ("timeout_ms", 10),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {least}")


class SnapshotStore(Protocol):
    """Versions of one model. Every method raises `StoreUnavailableError` if the store does not answer."""

    def next_epoch(self) -> int:
        """Returns an epoch higher than any before: its holder may publish, all earlier holders no longer may."""

    def put(self, manifest: Manifest, payload: Payload) -> None:
        """Steps 1 and 2: writes the payload, then the manifest. Nobody is told."""

    def promote(self, manifest: Manifest, *, release: bool = True) -> bool:
        """Step 4: moves the pointer to a version that was put, and announces it. False if it was there already.

        With `release` the stable lane follows at once; without, `release` moves it later. The first version of all is
        released in any case.

        Raises:
            StaleEpochError: a higher epoch has been given out.
            PointerOrderError: the pointer names a later version.
            SnapshotGapError: a delta whose base is not the version the pointer names.
            SnapshotMissingError: its payload or manifest is not in the store.
        """

    def release(self, version: int, epoch: int) -> bool:
        """Moves the stable lane forward to a version that was promoted, and announces it.

        False if that version is not kept, not after the one released, or denied.

        Raises:
            StaleEpochError: a higher epoch than `epoch` has been given out.
        """

    def roll_back(self, manifest: Manifest, rollback: Rollback) -> None:
        """Moves both lanes to a full version that was put, denies `rollback.denied`, keeps the record, announces it.

        Raises:
            StaleEpochError, PointerOrderError, SnapshotMissingError: as `promote`; nothing has changed then.
        """

    def rollbacks(self) -> list[Rollback]:
        """Returns the rollbacks still kept, newest first."""

    def denied(self) -> set[int]:
        """Returns every version that was rolled back."""

    def last_version(self) -> int:
        """Returns the highest version number ever put, live or not; 0 before the first."""

    def reject(self, manifest: Manifest, reason: str, findings: Sequence[Finding] = ()) -> None:
        """Instead of step 4: keeps a version that failed its gate for inspection."""

    def rejected(self) -> list[Rejection]:
        """Returns the rejected versions still kept, newest first."""

    def pointer(self, lane: Lane = "canary") -> Manifest | None:
        """Returns the version that a lane serves; None before the first. The trainer builds on `canary`, the newest."""

    def versions(self) -> list[int]:
        """Returns the versions that were live and are still kept, rising."""

    def manifest(self, version: int) -> Manifest | None:
        """Returns the manifest of a version that was live; None if it is not kept."""

    def latest_full(self, lane: Lane = "canary") -> Manifest | None:
        """Returns the newest full version that a lane may serve; None before the first. Never a denied one."""

    def payload(self, manifest: Manifest) -> Payload:
        """Returns the payload that was put with a manifest, live or not.

        Raises:
            SnapshotMissingError: it is not kept.
            SnapshotLengthError: it is not as long as the manifest says, or longer than is allowed; nothing was fetched.
        """

    def announcements(self, after_id: str, block_ms: int) -> list[Announcement]:
        """Returns the announcements after `after_id`, oldest first; waits at most `block_ms` for the first one."""

    def close(self) -> None:
        """Releases the connection."""


def chain_to(store: SnapshotStore, target: Manifest, held: Manifest | None = None) -> list[Manifest]:
    """Returns what to apply, in order, to arrive at `target`: deltas on top of `held`, else a full and its deltas.

    Raises:
        SnapshotGapError: the chain is broken; fetch `latest_full` instead.
    """
    chain = [target]
    while chain[-1].kind == "delta":
        base = store.manifest(chain[-1].base_version)
        if base is None:
            raise SnapshotGapError(
                f"version {chain[-1].base_version} is not in the store, so version {target.version} cannot be reached"
            )
        if base == held:
            break
        chain.append(base)
    return chain[::-1]


def retired_versions(
    live: list[tuple[int, SnapshotKind]], keep_fulls: int, released: int, denied: Collection[int] = ()
) -> list[int]:
    """Returns which of the versions (rising) go: all before the oldest of the last `keep_fulls` full ones.

    Denied ones are none of those. What the stable lane needs to reach its `released` version stays.

    >>> retired_versions([(1, "full"), (2, "delta"), (3, "full"), (4, "delta")], keep_fulls=1, released=4)
    [1, 2]
    >>> retired_versions([(1, "full"), (2, "delta"), (3, "full"), (4, "delta")], keep_fulls=1, released=2)
    []
    """
    fulls = [version for version, kind in live if kind == "full" and version not in denied]
    oldest_kept = fulls[-keep_fulls] if len(fulls) >= keep_fulls else 0
    oldest_kept = min(oldest_kept, max((version for version in fulls if version <= released), default=0))
    return [version for version, _ in live if version < oldest_kept]


class MemorySnapshotStore:
    """A `SnapshotStore` in one process, for tests and replay. Readers may be other threads.

    `on_step` is called with "payload", "manifest" and "pointer" *before* the step of that name is done; a test crashes
    there by raising.
    """

    def __init__(self, config: StoreConfig | None = None, on_step: Callable[[str], None] | None = None) -> None:
        self._config = config or StoreConfig()
        self._on_step = on_step or (lambda step: None)
        self._changed = threading.Condition()  # its lock is re-entrant
        self._epoch = 0
        self._payloads: dict[tuple[int, int], Payload] = {}
        self._manifests: dict[tuple[int, int], Manifest] = {}
        self._live: dict[int, int] = {}  # version -> epoch, in order of promotion
        self._announced: list[Announcement] = []
        self._num_announced = 0
        self._rejected: list[Rejection] = []
        self._released: tuple[int, int] | None = None
        self._rollbacks: list[Rollback] = []
        self._denied: set[int] = set()
        self._last_version = 0

    def next_epoch(self) -> int:
        """See `SnapshotStore.next_epoch`."""
        with self._changed:
            self._epoch += 1
            return self._epoch

    def put(self, manifest: Manifest, payload: Payload) -> None:
        """See `SnapshotStore.put`."""
        key = (manifest.version, manifest.epoch)
        self._on_step("payload")
        with self._changed:
            self._payloads[key] = payload
        self._on_step("manifest")
        with self._changed:
            self._manifests[key] = manifest
            self._last_version = max(self._last_version, manifest.version)

    def promote(self, manifest: Manifest, *, release: bool = True) -> bool:
        """See `SnapshotStore.promote`."""
        self._on_step("pointer")
        key = (manifest.version, manifest.epoch)
        with self._changed:
            if manifest.epoch < self._epoch:
                raise stale_epoch(manifest, self._epoch)
            if key not in self._payloads or key not in self._manifests:
                raise missing(manifest.version)
            live_version, live_epoch = next(reversed(self._live.items()), (0, 0))
            if (live_version, live_epoch) == key:
                return False
            if manifest.version <= live_version:
                raise pointer_order(manifest, live_version)
            if manifest.kind == "delta" and manifest.base_version != live_version:
                raise base_gap(manifest, live_version)
            self._epoch = manifest.epoch
            self._live[manifest.version] = manifest.epoch
            if release or self._released is None:
                self._released = key
            self._announce(manifest)
            return True

    def _announce(self, manifest: Manifest) -> None:
        self._num_announced += 1
        self._announced.append(Announcement(f"{self._num_announced}-0", manifest.version, manifest.kind))
        del self._announced[: -self._config.keep_announcements]
        self._retire()
        self._changed.notify_all()

    def release(self, version: int, epoch: int) -> bool:
        """See `SnapshotStore.release`."""
        with self._changed:
            key = (version, self._live.get(version, -1))
            if key not in self._manifests:
                return False
            if epoch < self._epoch:
                raise stale_epoch(self._manifests[key], self._epoch, epoch)
            if version in self._denied or (self._released is not None and version <= self._released[0]):
                return False
            self._released = key
            self._announce(self._manifests[key])
            return True

    def roll_back(self, manifest: Manifest, rollback: Rollback) -> None:
        """See `SnapshotStore.roll_back`."""
        with self._changed:
            before, self._denied = self._denied, self._denied | set(rollback.denied)
            try:
                self.promote(manifest)
            except StoreError:
                self._denied = before
                raise
            self._rollbacks.insert(0, rollback)
            del self._rollbacks[self._config.keep_rejected :]

    def rollbacks(self) -> list[Rollback]:
        """See `SnapshotStore.rollbacks`."""
        with self._changed:
            return list(self._rollbacks)

    def denied(self) -> set[int]:
        """See `SnapshotStore.denied`."""
        with self._changed:
            return set(self._denied)

    def last_version(self) -> int:
        """See `SnapshotStore.last_version`."""
        with self._changed:
            return self._last_version

    def _retire(self) -> None:
        kinds = [(version, self._manifests[version, epoch].kind) for version, epoch in self._live.items()]
        released = self._released[0] if self._released is not None else 0
        for version in retired_versions(kinds, self._config.keep_fulls, released, self._denied):
            key = (version, self._live.pop(version))
            del self._payloads[key], self._manifests[key]

    def reject(self, manifest: Manifest, reason: str, findings: Sequence[Finding] = ()) -> None:
        """See `SnapshotStore.reject`."""
        with self._changed:
            self._rejected.insert(0, Rejection(manifest, reason, list(findings)))
            for dropped in self._rejected[self._config.keep_rejected :]:
                key = (dropped.manifest.version, dropped.manifest.epoch)
                self._payloads.pop(key, None)
                self._manifests.pop(key, None)
            del self._rejected[self._config.keep_rejected :]

    def rejected(self) -> list[Rejection]:
        """See `SnapshotStore.rejected`."""
        with self._changed:
            return list(self._rejected)

    def pointer(self, lane: Lane = "canary") -> Manifest | None:
        """See `SnapshotStore.pointer`."""
        with self._changed:
            if lane == "stable":
                return self._manifests[self._released] if self._released is not None else None
            return self._manifests[next(reversed(self._live.items()))] if self._live else None

    def versions(self) -> list[int]:
        """See `SnapshotStore.versions`."""
        with self._changed:
            return list(self._live)

    def manifest(self, version: int) -> Manifest | None:
        """See `SnapshotStore.manifest`."""
        with self._changed:
            return self._manifests.get((version, self._live.get(version, -1)))

    def latest_full(self, lane: Lane = "canary") -> Manifest | None:
        """See `SnapshotStore.latest_full`."""
        with self._changed:
            limit = self._released[0] if lane == "stable" and self._released is not None else self._last_version
            for key in reversed(self._live.items()):
                if self._manifests[key].kind == "full" and key[0] <= limit and key[0] not in self._denied:
                    return self._manifests[key]
            return None

    def payload(self, manifest: Manifest) -> Payload:
        """See `SnapshotStore.payload`."""
        with self._changed:
            payload = self._payloads.get((manifest.version, manifest.epoch))
        if payload is None:
            raise missing(manifest.version)
        check_length(manifest, len(payload), self._config.max_payload_bytes)
        return payload

    def announcements(self, after_id: str, block_ms: int) -> list[Announcement]:
        """See `SnapshotStore.announcements`."""
        after = _rank(after_id)
        with self._changed:
            self._changed.wait_for(lambda: self._num_announced > after, timeout=block_ms / 1000)
            return [announcement for announcement in self._announced if _rank(announcement.id) > after]

    def close(self) -> None:
        """See `SnapshotStore.close`."""


def _rank(announcement_id: str) -> int:
    return int(announcement_id.partition("-")[0])


def stale_epoch(manifest: Manifest, held: int, own: int | None = None) -> StaleEpochError:
    """Returns the error every store raises for a trainer that was overtaken, whose `own` epoch may be another one."""
    return StaleEpochError(
        f"another trainer publishes model {manifest.model} with epoch {held}; "
        f"this one holds epoch {manifest.epoch if own is None else own} and must stop"
    )


def pointer_order(manifest: Manifest, live_version: int) -> PointerOrderError:
    """Returns the error every store raises for a version that is not newer than the live one."""
    return PointerOrderError(f"version {manifest.version} is not after the live version {live_version}")


def base_gap(manifest: Manifest, live_version: int) -> SnapshotGapError:
    """Returns the error every store raises for a delta on another base than the live version."""
    return SnapshotGapError(
        f"delta {manifest.version} is built on version {manifest.base_version}, the live version is {live_version}"
    )


def check_length(manifest: Manifest, num_bytes: int, max_payload_bytes: int) -> None:
    """Refuses a payload that is not worth fetching.

    Raises:
        SnapshotLengthError: it is not as long as its manifest says, or longer than is allowed.
    """
    if num_bytes != manifest.payload_bytes or num_bytes > max_payload_bytes:
        raise SnapshotLengthError(
            f"payload has {num_bytes} bytes, its manifest says {manifest.payload_bytes}, "
            f"at most {max_payload_bytes} are allowed: model={manifest.model} version={manifest.version}"
        )


def missing(version: int) -> SnapshotMissingError:
    """Returns the error every store raises for what it does not hold."""
    return SnapshotMissingError(f"version {version} is not in the store")
