"""The ranker over HTTP. What goes in and out is in `ranker.api`, what happens in between in `ranker.answer`.

Bodies are decoded and answers encoded here and not by the framework: its own way builds the request twice, and its
error texts are not the one line we promise. Scoring runs on the event loop: at these sizes a thread costs more than it
frees.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from litestar import Litestar, Request, Response, get, post
from litestar.exceptions import HTTPException

from ranker.answer import Ranker
from ranker.api import ErrorResponse, HealthResponse
from ranker.blender_follow import BlenderWatcher
from ranker.door import Door, DoorConfig
from ranker.exceptions import BufferFullError, RequestError
from ranker.openapi import openapi_document, openapi_page
from ranker.request import RequestLimits
from ranker.tokens import Tokens
from ranker.watcher import SnapshotWatcher

logger = logging.getLogger(__name__)

DELIVERY_POLL_S = 0.1
"""Seconds between two looks at the producer's delivery reports while nothing is being sent."""
TEXT = "text/plain; version=0.0.4"
"""Media type of the Prometheus text format."""

AnyRequest = Request[Any, Any, Any]


def create_app(
    ranker: Ranker,
    watcher: SnapshotWatcher,
    limits: RequestLimits,
    *,
    metrics_text: Callable[[], bytes],
    version: str,
    flush_timeout_ms: int = 5_000,
    blender_watcher: BlenderWatcher | None = None,
    door: DoorConfig | None = None,
    tokens: Tokens | None = None,
    is_draining: Callable[[], bool] = lambda: False,
) -> Door:
    """Returns the ASGI app behind its door.

    It starts the watcher with the server; at the end it stops it and flushes the log.

    Args:
        ranker: Answers.
        watcher: Follows the snapshots for it.
        limits: The largest body is taken from here.
        metrics_text: Returns what `GET /metrics` shows.
        version: Of this software, for the OpenAPI document.
        flush_timeout_ms: How long the log may take at the end to get rid of what is queued.
        blender_watcher: Follows the learned weights for it; None: the config's serve for good.
        door: How much clients may ask for; None: the defaults.
        tokens: Who may come in; None: everybody.
        is_draining: Whether it is about to end and wants no new clients.
    """
    document = openapi_document(version)

    @post("/v1/rank")
    async def rank(request: AnyRequest) -> Response[bytes]:
        return _json(await ranker.rank(await request.body()))

    @post("/v1/feedback")
    async def feedback(request: AnyRequest) -> Response[bytes]:
        return _json(ranker.feedback(await request.body()), status=202)

    @get("/v1/health")
    async def health() -> Response[bytes]:
        if is_draining():
            return _json(HealthResponse(status="draining", degraded=[]), 503)
        if not watcher.has_looked:
            return _json(HealthResponse(status="starting", degraded=[]), 503)
        return _json(ranker.health())

    @get("/v1/model")
    async def model() -> Response[bytes]:
        return _json(ranker.model())

    @get("/metrics")
    async def metrics() -> Response[bytes]:
        return Response(metrics_text(), media_type=TEXT)

    @get("/openapi.json")
    async def openapi() -> Response[bytes]:
        return _json(document)

    @get(["/", "/docs"])
    async def docs() -> Response[str]:
        return Response(openapi_page(document), media_type="text/html")

    @asynccontextmanager
    async def running(_: Litestar) -> AsyncIterator[None]:
        watcher.start()
        if blender_watcher is not None:
            blender_watcher.start()
        deliveries = asyncio.create_task(_poll_deliveries(ranker))
        try:
            yield
        finally:
            deliveries.cancel()
            watcher.stop()
            if blender_watcher is not None:
                blender_watcher.stop()
            ranker.sequences.close()
            ranker.rows.close()
            if num_left := ranker.log.flush(flush_timeout_ms):
                logger.warning("Stopped before the log had taken all events: lost=%d", num_left)

    app = Litestar(
        [rank, feedback, health, model, metrics, openapi, docs],
        lifespan=[running],
        exception_handlers={
            RequestError: lambda _, error: _error(400, str(error)),
            BufferFullError: lambda _, error: _error(503, str(error)),
            HTTPException: lambda _, error: _error(error.status_code, error.detail),
            Exception: _unforeseen,
        },
        request_max_body_size=None,  # the door sees to it
        openapi_config=None,
        logging_config=None,
    )
    return Door(
        app,
        door or DoorConfig(),
        tokens or Tokens(),
        max_body_bytes=limits.max_body_bytes,
        turned_away=ranker.stats.turned_away,
    )


async def _poll_deliveries(ranker: Ranker) -> None:
    while True:
        ranker.log.poll()
        await asyncio.sleep(DELIVERY_POLL_S)


def _json(value: Any, status: int = 200) -> Response[bytes]:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


def _error(status: int, text: str) -> Response[bytes]:
    return _json(ErrorResponse(error=text), status)


def _unforeseen(request: AnyRequest, error: Exception) -> Response[bytes]:
    logger.error("A request failed: path=%s", request.url.path, exc_info=error)
    return _error(500, "internal error, see the ranker's log")
