"""The snapshot store on Redis. Rows travel as one packed block, never one key per row.

Keys, all in one hash slot, `P` = `<prefix>:{<model>}` (default prefix `freshrank:model`):

    P:payload:<version>:<epoch>     safetensors bytes
    P:manifest:<version>:<epoch>    JSON
    P:pointer                       hash {version, epoch}: the live version
    P:epoch                         the highest epoch given out
    P:live                          sorted set of "<version>:<epoch>:<kind>" by version: kept ones that are or were live
    P:announcements                 stream of {version, kind}
    P:rejected                      list of JSON, newest first

A candidate expires by itself; the script that makes it live also takes its expiry away, so nothing live ever expires.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from model.exceptions import ModelError, StoreUnavailableError
from model.snapshot import Manifest, SnapshotKind, decode_manifest, encode_manifest
from model.store import (
    Announcement,
    Rejection,
    StoreConfig,
    base_gap,
    missing,
    pointer_order,
    retired_versions,
    stale_epoch,
)

_PROMOTE = """
-- KEYS: epoch, pointer, payload, manifest, live, announcements
-- ARGV: epoch, version, kind, base_version, keep_announcements
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
redis.call('XADD', KEYS[6], 'MAXLEN', '~', ARGV[5], '*', 'version', ARGV[2], 'kind', ARGV[3])
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

    def _key(self, *parts: str | int) -> str:
        return ":".join((self._prefix, *map(str, parts)))

    def next_epoch(self) -> int:
        """See `SnapshotStore.next_epoch`."""
        with _unavailable():
            return int(self._redis.incr(self._key("epoch")))

    def put(self, manifest: Manifest, payload: bytes) -> None:
        """See `SnapshotStore.put`. One round trip; the server runs the two commands in this order."""
        with _unavailable():
            pipeline = self._redis.pipeline(transaction=False)
            ttl_s = self._config.candidate_ttl_s
            pipeline.set(self._key("payload", manifest.version, manifest.epoch), payload, ex=ttl_s)
            pipeline.set(self._key("manifest", manifest.version, manifest.epoch), encode_manifest(manifest), ex=ttl_s)
            pipeline.execute()

    def promote(self, manifest: Manifest) -> bool:
        """See `SnapshotStore.promote`."""
        version, epoch = manifest.version, manifest.epoch
        keys = [
            self._key("epoch"),
            self._key("pointer"),
            self._key("payload", version, epoch),
            self._key("manifest", version, epoch),
            self._key("live"),
            self._key("announcements"),
        ]
        args = [epoch, version, manifest.kind, manifest.base_version, self._config.keep_announcements]
        with _unavailable():
            outcome, number = self._promote(keys=keys, args=args)
        if outcome in _REFUSALS:
            raise _REFUSALS[outcome](manifest, int(number))
        if manifest.kind == "full":
            self._retire()
        return bool(outcome == b"moved")

    def _retire(self) -> None:
        with _unavailable():
            live = self._live()
            retired = set(retired_versions([(version, kind) for version, _, kind in live], self._config.keep_fulls))
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

    def reject(self, manifest: Manifest, reason: str) -> None:
        """See `SnapshotStore.reject`. Its payload stays until `candidate_ttl_s` is over."""
        with _unavailable():
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.lpush(self._key("rejected"), msgspec.json.encode(Rejection(manifest, reason)))
            pipeline.ltrim(self._key("rejected"), 0, self._config.keep_rejected - 1)
            pipeline.execute()

    def rejected(self) -> list[Rejection]:
        """See `SnapshotStore.rejected`."""
        with _unavailable():
            entries = self._redis.lrange(self._key("rejected"), 0, -1)
        return [msgspec.json.decode(entry, type=Rejection) for entry in entries]

    def pointer(self) -> Manifest | None:
        """See `SnapshotStore.pointer`."""
        with _unavailable():
            version, epoch = self._redis.hmget(self._key("pointer"), "version", "epoch")
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

    def latest_full(self) -> Manifest | None:
        """See `SnapshotStore.latest_full`."""
        with _unavailable():
            fulls = [(version, epoch) for version, epoch, kind in self._live() if kind == "full"]
            return self._read_manifest(*fulls[-1]) if fulls else None

    def payload(self, version: int) -> bytes:
        """See `SnapshotStore.payload`."""
        with _unavailable():
            live = self._live(version)
            payload = self._redis.get(self._key("payload", version, live[0][1])) if live else None
        if payload is None:
            raise missing(version)
        return cast(bytes, payload)

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
