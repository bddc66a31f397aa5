"""Does the open loop of these benchmarks measure what wrk measures?

wrk is a closed loop: one connection, the next request a fixed time after the last answer. At so low a rate nobody waits
behind anybody, so both must say the same; beyond it wrk does not count the wait (coordinated omission), and we do.
Needs `wrk` (Debian's package); the two take turns, and each one's figure is the median over its turns.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import redis
import torch

from benchmarks.open_loop import open_loop
from benchmarks.rank_server import LOAD_CORE, ranker_server, stay_on
from benchmarks.rank_snapshots import Publisher, redis_server
from benchmarks.rank_world import NUM_USERS, SCHEMA, World
from model.config import ModelConfig
from model.features import FeatureEncoder
from stream.codec import encode_sequence

PER_S, DURATION_S, TURNS, PERCENTILES = 20, 5, 5, (50, 90)
SCRIPT = """
local bodies, number = {}, 0
for line in io.lines(os.getenv("BODIES")) do bodies[#bodies + 1] = line end
wrk.method, wrk.headers["Content-Type"] = "POST", "application/json"
function request()
  number = number + 1
  return wrk.format(nil, nil, nil, bodies[number % #bodies + 1])
end
function delay() return tonumber(os.getenv("DELAY_MS")) end
function done(_, latency)
  for percentile in os.getenv("PERCENTILES"):gmatch("%d+") do
    print("wrk ms", latency:percentile(tonumber(percentile)) / 1000)
  end
end
"""


def by_wrk(port: int, folder: Path) -> list[float]:
    """Returns wrk's percentiles in ms."""
    environment = {
        "BODIES": str(folder / "bodies"),
        "DELAY_MS": str(1000 // PER_S),
        "PERCENTILES": " ".join(map(str, PERCENTILES)),
    }
    argv = ["wrk", "-t1", "-c1", f"-d{DURATION_S}s", "-s", str(folder / "load.lua"), f"http://127.0.0.1:{port}/v1/rank"]
    printed = subprocess.run(argv, env=os.environ | environment, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in printed:
        raise RuntimeError(printed)
    return [float(line.split()[2]) for line in printed.splitlines() if line.startswith("wrk ms")]


def by_open_loop(port: int, bodies: list[bytes]) -> list[float]:
    """Returns our own percentiles in ms."""
    load = open_loop("127.0.0.1", port, "/v1/rank", bodies, per_s=PER_S, duration_s=DURATION_S)
    latencies_ms, _ = asyncio.run(load)
    return [float(np.percentile(latencies_ms, percentile)) for percentile in PERCENTILES]


def main() -> None:
    """Prints both."""
    if shutil.which("wrk") is None:
        sys.exit("wrk: is not installed; Debian's package is called so too")
    torch.set_num_threads(1)
    world = World()
    bodies = [json.dumps(world.request()).encode() for _ in range(100)]
    with redis_server() as redis_url, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bodies").write_bytes(b"\n".join(bodies))
        (folder / "load.lua").write_text(SCRIPT)
        redis.Redis.from_url(redis_url).mset(
            {f"freshrank:seq:user-{n}": encode_sequence(world.sequence()) for n in range(NUM_USERS)}
        )
        publisher = Publisher(redis_url, "small", world.keys(bodies, FeatureEncoder(SCHEMA, ModelConfig().encoding)))
        publisher.publish(*publisher.build())
        with ranker_server(redis_url, publisher.model) as server:
            stay_on(LOAD_CORE)
            by_open_loop(server.port, bodies)
            turns = [(by_wrk(server.port, folder), by_open_loop(server.port, bodies)) for _ in range(TURNS)]
    theirs, ours = np.median(turns, axis=0)
    for percentile, wrk_ms, own_ms in zip(PERCENTILES, theirs, ours, strict=True):
        print(f"p{percentile}: wrk {wrk_ms:.2f} ms, open loop {own_ms:.2f} ms, {own_ms / wrk_ms - 1:+.1%}")


if __name__ == "__main__":
    main()
