"""The snapshot store on Redis. Rows travel as one packed block, never one key per row.

Keys, all in one hash slot, `P` = `<prefix>:{<model>}` (default prefix `freshrank:model`):

    P:payload:<version>:<epoch>     safetensors bytes
    P:manifest:<version>:<epoch>    JSON
    P:pointer                       hash {version, epoch, stable_version, stable_epoch}: what the two lanes serve
    P:epoch                         the highest epoch given out
    P:live                          sorted set of "<version>:<epoch>:<kind>" by version: kept ones that are or were live
    P:announcements                 stream of {version, kind}
    P:rejected                      list of JSON, newest first
    P:rollbacks                     list of JSON, newest first
    P:denied                        set of versions that were rolled back
    P:numbers                       sorted set {last: the highest version ever put}

A candidate expires by itself; the script that makes it live also takes its expiry away, so nothing live ever expires.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import msgspec
import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from model.exceptions import ModelError, StoreUnavailableError
from model.gate_report import Finding
from model.payload_view import Payload
from model.snapshot import Manifest, SnapshotKind, decode_manifest, encode_manifest
from model.store import (
    Announcement,
    Lane,
    Rejection,
    Rollback,
    StoreConfig,
    base_gap,
    check_length,
    missing,
    pointer_order,
    retired_versions,
    stale_epoch,
)

PART_BYTES = 1_048_576
"""Bytes fetched of a payload at a time."""

_PROMOTE = """
-- KEYS: epoch, pointer, payload, manifest, live, announcements, denied, rollbacks
-- ARGV: epoch, version, kind, base_version, keep_announcements, release, record of a rollback or '', keep, denied ...
local highest = tonumber(redis.call('GET', KEYS[1]) or '0')
if tonumber(ARGV[1]) < highest then return {'stale', highest} end
if redis.call('EXISTS', KEYS[3], KEYS[4]) < 2 then return {'missing', 0} end
local live = redis.call('HMGET', KEYS[2], 'version', 'epoch')
local live_version = tonumber(live[1] or '0')
if tonumber(ARGV[2]) == live_version and ARGV[1] == live[2] then return {'already', live_version} end
if tonumber(ARGV[2]) <= live_version then return {'order', live_version} end
if ARGV[3] == 'delta' and tonumber(ARGV[4]) ~= live_version then return {'gap', live_version} end
redis.call('PERSIST', KEYS[3])
redis.call('PERSIST', KEYS[4])
redis.call('SET', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[5], ARGV[2], ARGV[2] .. ':' .. ARGV[1] .. ':' .. ARGV[3])
redis.call('HSET', KEYS[2], 'version', ARGV[2], 'epoch', ARGV[1])
if ARGV[6] == '1' or redis.call('HEXISTS', KEYS[2], 'stable_version') == 0 then
  redis.call('HSET', KEYS[2], 'stable_version', ARGV[2], 'stable_epoch', ARGV[1])
end
if ARGV[7] ~= '' then
  redis.call('LPUSH', KEYS[8], ARGV[7])
  redis.call('LTRIM', KEYS[8], 0, tonumber(ARGV[8]) - 1)
  for n = 9, #ARGV do redis.call('SADD', KEYS[7], ARGV[n]) end
end
redis.call('XADD', KEYS[6], 'MAXLEN', '~', ARGV[5], '*', 'version', ARGV[2], 'kind', ARGV[3])
return {'moved', tonumber(ARGV[2])}
"""
_RELEASE = """
-- KEYS: epoch, pointer, announcements, denied
-- ARGV: epoch, version, epoch of the version, kind, keep_announcements
local highest = tonumber(redis.call('GET', KEYS[1]) or '0')
if tonumber(ARGV[1]) < highest then return {'stale', highest} end
local released = tonumber(redis.call('HGET', KEYS[2], 'stable_version') or '0')
if tonumber(ARGV[2]) <= released or redis.call('SISMEMBER', KEYS[4], ARGV[2]) == 1 then return {'kept', released} end
redis.call('HSET', KEYS[2], 'stable_version', ARGV[2], 'stable_epoch', ARGV[3])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[5], '*', 'version', ARGV[2], 'kind', ARGV[4])
return {'moved', tonumber(ARGV[2])}
"""

_REFUSALS: dict[bytes, Callable[[Manifest, int], ModelError]] = {
    b"stale": stale_epoch,
    b"missing": lambda manifest, _: missing(manifest.version),
    b"order": pointer_order,
    b"gap": base_gap,
}


class RedisSnapshotStore:
    """A `SnapshotStore` on the Redis at `url`, for one model line. Connects on first use; threads may share it."""

    def __init__(self, url: str, model: str, config: StoreConfig | None = None) -> None:
        self._config = config or StoreConfig()
        self._prefix = f"{self._config.prefix}:{{{model}}}"
        timeout_s = self._config.timeout_ms / 1000
        # No retries inside the client: the trainer must get back to training, and tries again at its next publish.
        self._redis: Any = redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._promote = self._redis.register_script(_PROMOTE)
        self._release = self._redis.register_script(_RELEASE)

    def _key(self, *parts: str | int) -> str:
        return ":".join((self._prefix, *map(str, parts)))

    def next_epoch(self) -> int:
        """See `SnapshotStore.next_epoch`."""
        with _unavailable():
            return int(self._redis.incr(self._key("epoch")))

    def put(self, manifest: Manifest, payload: Payload) -> None:
        """See `SnapshotStore.put`. One round trip; the server runs the two commands in this order."""
        with _unavailable():
            pipeline = self._redis.pipeline(transaction=False)
            ttl_s = self._config.candidate_ttl_s
            pipeline.set(self._key("payload", manifest.version, manifest.epoch), payload, ex=ttl_s)
            pipeline.set(self._key("manifest", manifest.version, manifest.epoch), encode_manifest(manifest), ex=ttl_s)
            pipeline.zadd(self._key("numbers"), {"last": manifest.version}, gt=True)
            pipeline.execute()

    def promote(self, manifest: Manifest, *, release: bool = True) -> bool:
        """See `SnapshotStore.promote`."""
        return self._move(manifest, release=release, rollback=None)

    def roll_back(self, manifest: Manifest, rollback: Rollback) -> None:
        """See `SnapshotStore.roll_back`."""
        self._move(manifest, release=True, rollback=rollback)

    def _move(self, manifest: Manifest, *, release: bool, rollback: Rollback | None) -> bool:
        version, epoch = manifest.version, manifest.epoch
        keys = [
            self._key("epoch"),
            self._key("pointer"),
            self._key("payload", version, epoch),
            self._key("manifest", version, epoch),
            self._key("live"),
            self._key("announcements"),
            self._key("denied"),
            self._key("rollbacks"),
        ]
        args = [epoch, version, manifest.kind, manifest.base_version, self._config.keep_announcements, int(release)]
        record = msgspec.json.encode(rollback) if rollback is not None else b""
        denied = rollback.denied if rollback is not None else []
        with _unavailable():
            outcome, number = self._promote(keys=keys, args=[*args, record, self._config.keep_rejected, *denied])
        if outcome in _REFUSALS:
            raise _REFUSALS[outcome](manifest, int(number))
        if manifest.kind == "full":
            self._retire()
        return bool(outcome == b"moved")

    def release(self, version: int, epoch: int) -> bool:
        """See `SnapshotStore.release`."""
        manifest = self.manifest(version)
        if manifest is None:
            return False
        keys = [self._key("epoch"), self._key("pointer"), self._key("announcements"), self._key("denied")]
        args = [epoch, version, manifest.epoch, manifest.kind, self._config.keep_announcements]
        with _unavailable():
            outcome, number = self._release(keys=keys, args=args)
        if outcome == b"stale":
            raise stale_epoch(manifest, int(number), epoch)
        return bool(outcome == b"moved")

    def rollbacks(self) -> list[Rollback]:
        """See `SnapshotStore.rollbacks`."""
        with _unavailable():
            entries = self._redis.lrange(self._key("rollbacks"), 0, -1)
        return [msgspec.json.decode(entry, type=Rollback) for entry in entries]

    def denied(self) -> set[int]:
        """See `SnapshotStore.denied`."""
        with _unavailable():
            return {int(version) for version in self._redis.smembers(self._key("denied"))}

    def last_version(self) -> int:
        """See `SnapshotStore.last_version`."""
        with _unavailable():
            return int(self._redis.zscore(self._key("numbers"), "last") or 0)

    def _retire(self) -> None:
        with _unavailable():
            live = self._live()
            denied = {int(version) for version in self._redis.smembers(self._key("denied"))}
            released = int(self._redis.hget(self._key("pointer"), "stable_version") or 0)
            kinds = [(version, kind) for version, _, kind in live]
            retired = set(retired_versions(kinds, self._config.keep_fulls, released, denied))
            pipeline = self._redis.pipeline(transaction=False)
            for version, epoch, kind in live:
                if version in retired:
                    pipeline.zrem(self._key("live"), f"{version}:{epoch}:{kind}")
                    pipeline.expire(self._key("manifest", version, epoch), self._config.retired_ttl_s)
                    pipeline.expire(self._key("payload", version, epoch), self._config.retired_ttl_s)
            pipeline.execute()

    def _live(self, version: int | None = None) -> list[tuple[int, int, SnapshotKind]]:
        low, high = ("-inf", "+inf") if version is None else (version, version)
        members = self._redis.zrangebyscore(self._key("live"), low, high)
        split = (member.decode().split(":") for member in members)
        return [(int(number), int(epoch), cast(SnapshotKind, kind)) for number, epoch, kind in split]

    def reject(self, manifest: Manifest, reason: str, findings: Sequence[Finding] = ()) -> None:
        """See `SnapshotStore.reject`. Its payload stays until `candidate_ttl_s` is over."""
        with _unavailable():
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.lpush(self._key("rejected"), msgspec.json.encode(Rejection(manifest, reason, list(findings))))
            pipeline.ltrim(self._key("rejected"), 0, self._config.keep_rejected - 1)
            pipeline.execute()

    def rejected(self) -> list[Rejection]:
        """See `SnapshotStore.rejected`."""
        with _unavailable():
            entries = self._redis.lrange(self._key("rejected"), 0, -1)
        return [msgspec.json.decode(entry, type=Rejection) for entry in entries]

    def pointer(self, lane: Lane = "canary") -> Manifest | None:
        """See `SnapshotStore.pointer`."""
        fields = ("stable_version", "stable_epoch") if lane == "stable" else ("version", "epoch")
        with _unavailable():
            version, epoch = self._redis.hmget(self._key("pointer"), *fields)
            if version is None:
                return None
            return self._read_manifest(int(version), int(epoch))

    def _read_manifest(self, version: int, epoch: int) -> Manifest | None:
        data = self._redis.get(self._key("manifest", version, epoch))
        return None if data is None else decode_manifest(data)

    def versions(self) -> list[int]:
        """See `SnapshotStore.versions`."""
        with _unavailable():
            return [version for version, _, _ in self._live()]

    def manifest(self, version: int) -> Manifest | None:
        """See `SnapshotStore.manifest`."""
        with _unavailable():
            live = self._live(version)
            return self._read_manifest(version, live[0][1]) if live else None

    def latest_full(self, lane: Lane = "canary") -> Manifest | None:
        """See `SnapshotStore.latest_full`."""
        denied = self.denied()
        with _unavailable():
            field = "stable_version" if lane == "stable" else "version"
            limit = int(self._redis.hget(self._key("pointer"), field) or 0)
            fulls = [(version, epoch) for version, epoch, kind in self._live() if kind == "full"]
            fulls = [(version, epoch) for version, epoch in fulls if version <= limit and version not in denied]
            return self._read_manifest(*fulls[-1]) if fulls else None

    def payload(self, manifest: Manifest) -> Payload:
        """See `SnapshotStore.payload`. Fetched part by part: the client copies, and holds the interpreter's lock."""
        key = self._key("payload", manifest.version, manifest.epoch)
        with _unavailable():
            num_bytes = self._redis.strlen(key)
            if not num_bytes and not self._redis.exists(key):
                raise missing(manifest.version)
            check_length(manifest, num_bytes, self._config.max_payload_bytes)
            payload = np.empty(num_bytes, np.uint8).data
            for start in range(0, num_bytes, PART_BYTES):
                part = self._redis.getrange(key, start, start + PART_BYTES - 1)
                if len(part) != min(PART_BYTES, num_bytes - start):  # it is written once, so it has expired meanwhile
                    raise missing(manifest.version)
                payload[start : start + len(part)] = part
        return payload

    def announcements(self, after_id: str, block_ms: int) -> list[Announcement]:
        """See `SnapshotStore.announcements`. Waits at most half of `timeout_ms`, so that a wait is never a timeout."""
        # BLOCK 0 would wait for ever.
        block_ms = max(1, min(block_ms, self._config.timeout_ms // 2))
        with _unavailable():
            streams = self._redis.xread({self._key("announcements"): after_id}, block=block_ms)
        return [
            Announcement(entry_id.decode(), int(fields[b"version"]), cast(SnapshotKind, fields[b"kind"].decode()))
            for _, entries in streams or []
            for entry_id, fields in entries
        ]

    def close(self) -> None:
        """See `SnapshotStore.close`."""
        self._redis.close()


@contextmanager
def _unavailable() -> Iterator[None]:
    """Turns the client's errors into ours: whoever reads a snapshot need not know Redis."""
    try:
        yield
    except redis.RedisError as error:
        raise StoreUnavailableError(f"snapshot store does not answer: {error}") from error
