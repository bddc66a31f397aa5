"""`freshrank monitor`: scrapes every process, keeps a short history, and serves the live page."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freshrank.command import now_ms, run_options
from freshrank.config import RunConfig
from freshrank.doors import door_tokens, own_headers
from freshrank.exits import CommandError, ExitCode
from freshrank.health import PATH as HEALTH_PATH
from freshrank.places import PROCESSES, MonitorConfig, addresses

if TYPE_CHECKING:
    import httpx
    from litestar import Litestar

    from freshrank.board import Board
    from freshrank.scrape import Scrape
    from sim.world import World

_logger = logging.getLogger(__name__)
SCRAPE_TIMEOUT_S = 0.8
MAX_BODY_BYTES = 1_048_576
PAGE_POLICY = "default-src 'self'; img-src 'self' data:"
"""Content-Security-Policy of the page: its own files, and no code or style inside another."""


@click.command()
@run_options()
@click.option(
    "--door",
    type=click.Path(path_type=Path),
    help="Socket of the `freshrank up` that started this, so that the page may kill processes (monitor.controls).",
)
def monitor(run: RunConfig, door: Path | None) -> None:
    """Serves the live page.

    The page shows freshness, quality, throughput and all processes, and lets you be a user. The same figures as JSON
    are at /api/state, those of the monitor itself at /metrics.

    \b
    Example:
      freshrank monitor --config configs/demo.yaml
    """  # noqa: D301 - click wants the character
    from ranker.door import Door
    from ranker.exceptions import PortTakenError
    from ranker.server import HttpServer, ServerConfig

    tokens = door_tokens("monitor.door", run.monitor.host, allow_anonymous=run.monitor.door.allow_anonymous)
    app = Door(
        create_app(run, door=door),
        run.monitor.door,
        tokens,
        max_body_bytes=MAX_BODY_BYTES,
        turned_away=Counter(),
        open_paths=(HEALTH_PATH,),
    )
    try:
        server = HttpServer(app, ServerConfig(host=run.monitor.host, port=run.monitor.port), content_policy=PAGE_POLICY)
    except PortTakenError as error:
        raise CommandError(ExitCode.PORT_TAKEN, f"{error}; stop the other program or change monitor.port") from error
    _logger.info("Page is served. url=http://%s:%s/", run.monitor.host, run.monitor.port)
    server.run()
    if not server.is_serving:
        raise CommandError(ExitCode.DEFECT, "The page's server did not start; the log says why")


def create_app(run: RunConfig, clock_ms: Callable[[], int] = now_ms, door: Path | None = None) -> "Litestar":
    """Returns the page's application; it starts scraping when it is served. `door`: the supervisor's, for faults."""
    import httpx
    from litestar import Litestar

    from freshrank.board import Board
    from freshrank.control_routes import control_routes
    from freshrank.controls import Controls
    from freshrank.page_routes import page_routes

    config = run.monitor
    board = Board(
        [*config.targets(), "monitor"],
        list(run.schema.tasks),
        run.schema.scenarios,
        history=config.history_s * 1_000 // config.interval_ms,
    )

    @asynccontextmanager
    async def scraping(app: Litestar) -> AsyncIterator[None]:
        async with httpx.AsyncClient(timeout=SCRAPE_TIMEOUT_S, headers=own_headers()) as client:
            task = asyncio.create_task(scrape_forever(client, config, board, clock_ms))
            task.add_done_callback(tell)
            try:
                yield
            finally:
                task.cancel()

    routes = [*page_routes(run, board, world(run), config.ranker_url, clock_ms)]
    if config.controls:
        simulator = next(iter(addresses(config.simulator)), "")
        routes += control_routes(Controls(simulator, door), board.timeline, clock_ms)
    return Litestar(routes, lifespan=[scraping], openapi_config=None, logging_config=None)


def tell(task: "asyncio.Task[None]") -> None:
    """Logs why a task has ended that goes on for ever; being cancelled is no news."""
    if not task.cancelled() and task.exception() is not None:
        _logger.error("Nothing is scraped any more, the page stands still", exc_info=task.exception())


def world(run: RunConfig) -> "World | None":
    """Returns the simulator's world, for its users and candidates; None where there is no simulator."""
    if not run.monitor.simulator:
        return None
    from sim.world import World

    return World(run.sim)


async def scrape_forever(
    client: "httpx.AsyncClient", config: MonitorConfig, board: "Board", clock_ms: Callable[[], int]
) -> None:
    """Scrapes all processes once per interval, together, and hands the round to the board."""
    from freshrank.metrics import exposition, registry
    from freshrank.replicas import Replicas
    from freshrank.scrape import Scrape

    own, replicas = registry("monitor", lambda: ()), Replicas()
    while True:
        started_s = time.monotonic()
        targets = replicas.named(clock_ms(), await find(config))
        found = await asyncio.gather(*(scrape(client, config.metrics_url(*target)) for target in targets.items()))
        rounds = dict(zip(targets, found, strict=True)) | {"monitor": Scrape.parse(exposition(own)[0].decode())}
        board.keep(list(rounds))
        board.observe(clock_ms(), rounds)
        await asyncio.sleep(max(config.interval_ms / 1_000 - (time.monotonic() - started_s), 0.05))


async def find(config: MonitorConfig) -> dict[str, list[str]]:
    """Returns the addresses of each kind of process; with TLS the name, which is what a certificate vouches for."""
    from freshrank.replicas import resolve

    listed = {process: addresses(getattr(config, process)) for process in PROCESSES}
    return {
        process: at if process == "ranker" and config.ranker_scheme == "https" else await resolve(at)
        for process, at in listed.items()
    }


async def scrape(client: "httpx.AsyncClient", url: str) -> "Scrape | None":
    """Returns one process's samples; None if it does not answer, which the page then says."""
    import httpx

    from freshrank.scrape import Scrape

    try:
        answer = await client.get(url)
        answer.raise_for_status()
        return Scrape.parse(answer.text)
    except (httpx.HTTPError, ValueError) as error:
        _logger.debug("No metrics. url=%s error=%s", url, error)
        return None
