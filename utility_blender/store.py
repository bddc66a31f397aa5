"""Where learned weights go and come from: the protocol, and its implementation in memory.

The order of a publish, here and in `utility_blender.store_redis`:

1. `put`: the version, one document that carries its own sha256, written once
2. its gate has passed; one that has not is `reject`ed and can never be promoted
3. `promote`: one atomic act moves the pointer: forward, to a version that is fitted around the one in service, by a
   caller who knows the newest epoch. The same act raises its share later.
4. `rollback`: the pointer goes back to an earlier version, or to 0 (the production weights), under a higher epoch;
   every version it leaves behind is denied for good, as is whatever was fitted around one of those

Rankers poll the pointer. A crash between any two steps leaves it where it was.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from utility_blender.exceptions import BlenderVersionError, PromotionError
from utility_blender.version import BlenderVersion, decode_version

REFUSALS = ("stale", "missing", "gate", "denied", "order", "base", "share")
"""Why a pointer does not move."""
STAGES = (0.001, 0.01, 0.1, 1.0)
"""Shares of the requests a new version is served to, one after the other."""


class Pointer(NamedTuple):
    """What should be served."""

    version: int
    """Newest version; 0: the production weights."""
    share: float
    """Share of the requests that get it; the others get `previous`."""
    epoch: int
    """How often there was a rollback."""
    previous: int
    """The version before it, 0 if none."""


class Rejection(NamedTuple):
    """A version that failed its gate, kept for inspection."""

    version: BlenderVersion
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlenderStoreConfig:
    """What a store of learned weights keeps, and how long it waits."""

    prefix: str = "freshrank:blender"
    """In front of every key, so that several runs can share a Redis."""
    keep_rejected: int = 20
    """Rejected versions kept for inspection; at least 1."""
    timeout_ms: int = 1_000
    """Milliseconds after which a store that does not answer counts as unavailable; at least 10."""

    def __post_init__(self) -> None:
        if not self.prefix:
            raise ValueError("prefix: must not be empty")
        for name, least in (("keep_rejected", 1), ("timeout_ms", 10)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {least}")


class BlenderStore(Protocol):
    """Versions of one blender. Every method raises `BlenderUnavailableError` if the store does not answer."""

    def next_version(self) -> int:
        """Returns a version number nobody has had."""

    def put(self, version: BlenderVersion) -> None:
        """Step 1: writes a version. Nobody is told.

        Raises:
            PromotionError: `order`: there is one with its number.
        """

    def promote(self, version: int, *, share: float, epoch: int) -> bool:
        """Step 3: serves a version to a share in (0, 1] of the requests. False if it is so already.

        `epoch` is that of the pointer on which the caller's decision rests, 0 if there was none.

        Raises:
            PromotionError: `stale`: there was a rollback since; `missing`: it was not put; `gate`: its gate did not
                pass; `denied`: it or its base was rolled back; `order`: the pointer names a later one; `base`: it is
                not fitted around the version in service; `share`: not in (0, 1], or less than it has.
        """

    def rollback(self, to_version: int, reason: str) -> list[int]:
        """Step 4: serves an earlier version, 0 for the production weights, to all. Returns the versions denied by it.

        Raises:
            PromotionError: `order`: the version was never served to everybody, or is a later one; `denied`.
        """

    def pointer(self) -> Pointer | None:
        """Returns what should be served; None before the first version."""

    def get(self, version: int) -> BlenderVersion:
        """Returns a version that was put, whatever became of it.

        Raises:
            BlenderVersionError: it is missing or cannot be read.
        """

    def versions(self) -> list[int]:
        """Returns the versions that were served to everybody, rising."""

    def reject(self, version: BlenderVersion, reasons: Sequence[str]) -> None:
        """Instead of step 3: keeps a version that failed its gate for inspection."""

    def rejected(self) -> list[Rejection]:
        """Returns the rejected versions still kept, newest first."""

    def denied(self) -> set[int]:
        """Returns the versions that were rolled back: never served again, nor a centre, nor their outcomes used."""

    def rollbacks(self) -> list[str]:
        """Returns a line per rollback, newest first: from, to, reason."""

    def exploration(self) -> bool:
        """Returns whether requests may explore: only if somebody has switched it on."""

    def exploration_reason(self) -> str:
        """Returns why exploration is as it is; empty if nobody has said anything."""

    def set_exploration(self, is_on: bool, reason: str) -> None:
        """Switches exploration on or off."""

    def close(self) -> None:
        """Releases the connection."""


class MemoryBlenderStore:
    """A `BlenderStore` in one process, for tests and replay; threads may share it. It holds bytes, as Redis does.

    `on_step` is called with "put" and "pointer" *before* the step of that name is done; a test crashes there by
    raising.
    """

    def __init__(self, config: BlenderStoreConfig | None = None, on_step: Callable[[str], None] | None = None) -> None:
        self._config = config or BlenderStoreConfig()
        self._on_step = on_step or (lambda step: None)
        self._lock = threading.RLock()
        self._last_version = 0
        self._documents: dict[int, bytes] = {}
        self._rejected: list[tuple[bytes, tuple[str, ...]]] = []
        self._pointer: Pointer | None = None
        self._live: set[int] = set()
        self._denied: set[int] = set()
        self._rollbacks: list[str] = []
        self._exploration = (False, "")

    def next_version(self) -> int:
        """See `BlenderStore.next_version`."""
        with self._lock:
            self._last_version += 1
            return self._last_version

    def put(self, version: BlenderVersion) -> None:
        """See `BlenderStore.put`."""
        data = version.encode()
        self._on_step("put")
        with self._lock:
            if version.version in self._documents:
                raise taken(version.version)
            self._documents[version.version] = data

    def promote(self, version: int, *, share: float, epoch: int) -> bool:
        """See `BlenderStore.promote`."""
        self._on_step("pointer")
        with self._lock:
            candidate = candidate_of(self, version, share)
            held = self._pointer or Pointer(0, 1.0, 0, 0)
            if refusal := refused_move(held, candidate, share, epoch, self._denied):
                raise promotion_error(refusal, version)
            if (held.version, held.share) == (version, share):
                return False
            self._pointer = Pointer(version, share, held.epoch, candidate.base_version)
            if share == 1:
                self._live.add(version)
            return True

    def rollback(self, to_version: int, reason: str) -> list[int]:
        """See `BlenderStore.rollback`."""
        with self._lock:
            held = self._pointer or Pointer(0, 1.0, 0, 0)
            if to_version in self._denied:
                raise promotion_error("denied", to_version)
            if to_version and to_version not in self._live or to_version > held.version:
                raise promotion_error("order", to_version)
            left = sorted(version for version in (self._live | {held.version}) - self._denied if version > to_version)
            self._denied.update(left)
            self._pointer = Pointer(to_version, 1.0, held.epoch + 1, to_version)
            self._rollbacks.insert(0, rollback_line(held.version, to_version, reason))
            return left

    def pointer(self) -> Pointer | None:
        """See `BlenderStore.pointer`."""
        with self._lock:
            return self._pointer

    def get(self, version: int) -> BlenderVersion:
        """See `BlenderStore.get`."""
        with self._lock:
            data = self._documents.get(version)
        return read_document(data, version)

    def versions(self) -> list[int]:
        """See `BlenderStore.versions`."""
        with self._lock:
            return sorted(self._live)

    def reject(self, version: BlenderVersion, reasons: Sequence[str]) -> None:
        """See `BlenderStore.reject`."""
        with self._lock:
            self._rejected.insert(0, (version.encode(), tuple(reasons)))
            del self._rejected[self._config.keep_rejected :]

    def rejected(self) -> list[Rejection]:
        """See `BlenderStore.rejected`."""
        with self._lock:
            return [Rejection(decode_version(data), reasons) for data, reasons in self._rejected]

    def denied(self) -> set[int]:
        """See `BlenderStore.denied`."""
        with self._lock:
            return set(self._denied)

    def rollbacks(self) -> list[str]:
        """See `BlenderStore.rollbacks`."""
        with self._lock:
            return list(self._rollbacks)

    def exploration(self) -> bool:
        """See `BlenderStore.exploration`."""
        return self._exploration[0]

    def exploration_reason(self) -> str:
        """See `BlenderStore.exploration_reason`."""
        return self._exploration[1]

    def set_exploration(self, is_on: bool, reason: str) -> None:
        """See `BlenderStore.set_exploration`."""
        self._exploration = (is_on, reason)

    def close(self) -> None:
        """See `BlenderStore.close`."""


def candidate_of(store: BlenderStore, version: int, share: float) -> BlenderVersion:
    """Returns what is to be promoted.

    Raises:
        PromotionError: `missing`, `gate` or `share`, which need no lock: a version never changes.
    """
    if not 0 < share <= 1:
        raise PromotionError("share", f"share: {share} is not allowed; in (0, 1]")
    try:
        candidate = store.get(version)
    except BlenderVersionError as error:
        raise PromotionError("missing", f"version {version} cannot be promoted: {error}") from error
    if not candidate.passed:
        raise promotion_error("gate", version)
    return candidate


def refused_move(held: Pointer, candidate: BlenderVersion, share: float, epoch: int, denied: set[int]) -> str:
    """Returns which rule forbids the move, empty if none does. Redis decides the same in its script."""
    if epoch != held.epoch:
        return "stale"
    if candidate.version in denied or candidate.base_version in denied:
        return "denied"
    if candidate.version < held.version:
        return "order"
    if candidate.version == held.version:
        return "share" if share < held.share else ""
    in_service = held.version if held.share == 1 else held.previous
    return "" if candidate.base_version == in_service else "base"


_TEXTS = {
    "stale": "there was a rollback since the decision to promote version {}",
    "gate": "the gate of version {} did not pass",
    "denied": "version {} or its base was rolled back",
    "order": "version {} is not where the pointer may go: forward to a new one, back to one that served everybody",
    "base": "version {} is not fitted around the version in service",
    "share": "version {} has a larger share; roll back to take it away",
    "missing": "version {} is not in the store",
}


def promotion_error(reason: str, version: int) -> PromotionError:
    """Returns the error every store raises for a move that a rule forbids."""
    return PromotionError(reason, _TEXTS[reason].format(version))


def taken(version: int) -> PromotionError:
    """Returns the error every store raises for a number that was used."""
    return PromotionError("order", f"version {version} is in the store; a version is written once")


def rollback_line(from_version: int, to_version: int, reason: str) -> str:
    """Returns what every store notes down about a rollback."""
    return f"{from_version} -> {to_version}: {reason}"


def read_document(data: bytes | None, version: int) -> BlenderVersion:
    """Returns the version a store holds under a number.

    Raises:
        BlenderVersionError: it is missing, cannot be read, or carries another number.
    """
    if data is None:
        raise BlenderVersionError("missing", f"version {version} is not in the store")
    found = decode_version(data)
    if found.version != version:
        raise BlenderVersionError("format", f"version {version} holds version {found.version}")
    return found
