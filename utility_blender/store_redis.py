"""The store of learned weights on Redis.

Keys, all in one hash slot, `P` = `<prefix>:{<model>}` (default prefix `freshrank:blender`):

    P:version:<version>   sha256 and JSON, written once
    P:last                the highest version number given out
    P:pointer             hash {version, share, epoch, previous}
    P:live                sorted set of the versions that served everybody
    P:denied              set of the versions that were rolled back
    P:rollbacks           list of "from -> to: reason", newest first
    P:rejected            list of JSON {reasons, version}, newest first
    P:exploration         "on: reason" or "off: reason"; anything else, or nothing, is off

Numbers of versions are compared in the scripts, so a move is decided and made in one atomic act.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from utility_blender.exceptions import BlenderUnavailableError
from utility_blender.store import (
    BlenderStoreConfig,
    Pointer,
    Rejection,
    candidate_of,
    promotion_error,
    read_document,
    rollback_line,
    taken,
)
from utility_blender.version import BlenderVersion, decode_version

_PROMOTE = """
-- KEYS: pointer, denied, live, version;  ARGV: version, base_version, share, epoch
local held = redis.call('HMGET', KEYS[1], 'version', 'share', 'epoch', 'previous')
local version, share = tonumber(held[1] or '0'), tonumber(held[2] or '1')
local epoch, previous = tonumber(held[3] or '0'), tonumber(held[4] or '0')
local wanted, base = tonumber(ARGV[1]), tonumber(ARGV[2])
if redis.call('EXISTS', KEYS[4]) == 0 then return 'missing' end
if tonumber(ARGV[4]) ~= epoch then return 'stale' end
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) + redis.call('SISMEMBER', KEYS[2], ARGV[2]) > 0 then return 'denied' end
if wanted < version then return 'order' end
if wanted == version then
    if tonumber(ARGV[3]) < share then return 'share' end
    if tonumber(ARGV[3]) == share then return 'already' end
else
    local in_service = version
    if share < 1 then in_service = previous end
    if base ~= in_service then return 'base' end
end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'share', ARGV[3], 'epoch', epoch, 'previous', ARGV[2])
if tonumber(ARGV[3]) == 1 then redis.call('ZADD', KEYS[3], ARGV[1], ARGV[1]) end
return 'moved'
"""

_ROLLBACK = """
-- KEYS: pointer, denied, live;  ARGV: to
local held = redis.call('HMGET', KEYS[1], 'version', 'epoch')
local version, epoch, to = tonumber(held[1] or '0'), tonumber(held[2] or '0'), tonumber(ARGV[1])
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 1 then return {'denied'} end
if to > version or (to > 0 and not redis.call('ZSCORE', KEYS[3], ARGV[1])) then return {'order'} end
local left = {}
for _, later in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. ARGV[1], '+inf')) do
    if redis.call('SADD', KEYS[2], later) == 1 then table.insert(left, later) end
end
if version > to and redis.call('SADD', KEYS[2], tostring(version)) == 1 then table.insert(left, tostring(version)) end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'share', '1', 'epoch', epoch + 1, 'previous', ARGV[1])
return {'moved', tostring(version), unpack(left)}
"""

_KEEP_ROLLBACKS = 100


class RedisBlenderStore:
    """A `BlenderStore` on the Redis at `url`, for one model line. Connects on first use; threads may share it."""

    def __init__(self, url: str, model: str, config: BlenderStoreConfig | None = None) -> None:
        self._config = config or BlenderStoreConfig()
        self._prefix = f"{self._config.prefix}:{{{model}}}"
        timeout_s = self._config.timeout_ms / 1000
        self._redis: Any = redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),  # whoever asks has a way of its own to go on without
        )
        self._promote = self._redis.register_script(_PROMOTE)
        self._rollback = self._redis.register_script(_ROLLBACK)

    def _key(self, *parts: str | int) -> str:
        return ":".join((self._prefix, *map(str, parts)))

    def next_version(self) -> int:
        """See `BlenderStore.next_version`."""
        with _unavailable():
            return int(self._redis.incr(self._key("last")))

    def put(self, version: BlenderVersion) -> None:
        """See `BlenderStore.put`."""
        with _unavailable():
            if not self._redis.set(self._key("version", version.version), version.encode(), nx=True):
                raise taken(version.version)

    def promote(self, version: int, *, share: float, epoch: int) -> bool:
        """See `BlenderStore.promote`."""
        candidate = candidate_of(self, version, share)
        keys = [self._key("pointer"), self._key("denied"), self._key("live"), self._key("version", version)]
        with _unavailable():
            outcome = self._promote(keys=keys, args=[version, candidate.base_version, repr(float(share)), epoch])
        if outcome not in (b"moved", b"already"):
            raise promotion_error(outcome.decode(), version)
        return bool(outcome == b"moved")

    def rollback(self, to_version: int, reason: str) -> list[int]:
        """See `BlenderStore.rollback`."""
        with _unavailable():
            keys = [self._key("pointer"), self._key("denied"), self._key("live")]
            outcome, *rest = self._rollback(keys=keys, args=[to_version])
            if outcome != b"moved":
                raise promotion_error(outcome.decode(), to_version)
            from_version, *left = map(int, rest)
            self._redis.lpush(self._key("rollbacks"), rollback_line(from_version, to_version, reason))
            self._redis.ltrim(self._key("rollbacks"), 0, _KEEP_ROLLBACKS - 1)
        return sorted(left)

    def pointer(self) -> Pointer | None:
        """See `BlenderStore.pointer`."""
        with _unavailable():
            version, share, epoch, previous = self._redis.hmget(
                self._key("pointer"), "version", "share", "epoch", "previous"
            )
        return None if version is None else Pointer(int(version), float(share), int(epoch), int(previous))

    def get(self, version: int) -> BlenderVersion:
        """See `BlenderStore.get`."""
        with _unavailable():
            data = self._redis.get(self._key("version", version))
        return read_document(data, version)

    def versions(self) -> list[int]:
        """See `BlenderStore.versions`."""
        with _unavailable():
            return [int(member) for member in self._redis.zrange(self._key("live"), 0, -1)]

    def reject(self, version: BlenderVersion, reasons: Sequence[str]) -> None:
        """See `BlenderStore.reject`."""
        entry = json.dumps({"reasons": list(reasons), "version": version.encode().decode()})
        with _unavailable():
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.lpush(self._key("rejected"), entry)
            pipeline.ltrim(self._key("rejected"), 0, self._config.keep_rejected - 1)
            pipeline.execute()

    def rejected(self) -> list[Rejection]:
        """See `BlenderStore.rejected`."""
        with _unavailable():
            entries = [json.loads(entry) for entry in self._redis.lrange(self._key("rejected"), 0, -1)]
        return [Rejection(decode_version(entry["version"].encode()), tuple(entry["reasons"])) for entry in entries]

    def denied(self) -> set[int]:
        """See `BlenderStore.denied`."""
        with _unavailable():
            return {int(member) for member in self._redis.smembers(self._key("denied"))}

    def rollbacks(self) -> list[str]:
        """See `BlenderStore.rollbacks`."""
        with _unavailable():
            return [line.decode() for line in self._redis.lrange(self._key("rollbacks"), 0, -1)]

    def exploration(self) -> bool:
        """See `BlenderStore.exploration`."""
        return self._exploration()[0] == b"on"

    def exploration_reason(self) -> str:
        """See `BlenderStore.exploration_reason`."""
        return self._exploration()[2].decode()

    def _exploration(self) -> tuple[bytes, bytes, bytes]:
        with _unavailable():
            state, colon, reason = (self._redis.get(self._key("exploration")) or b"").partition(b": ")
        return state, colon, reason

    def set_exploration(self, is_on: bool, reason: str) -> None:
        """See `BlenderStore.set_exploration`."""
        with _unavailable():
            self._redis.set(self._key("exploration"), f"{'on' if is_on else 'off'}: {reason}")

    def close(self) -> None:
        """See `BlenderStore.close`."""
        self._redis.close()


@contextmanager
def _unavailable() -> Iterator[None]:
    """Turns the client's errors into ours: whoever reads weights need not know Redis."""
    try:
        yield
    except redis.RedisError as error:
        raise BlenderUnavailableError(f"blender store does not answer: {error}") from error
