"""What the live page asks for: its files, the state, candidates of the simulated world, and the ranker by proxy.

The ranker is reached through the monitor, so that the page needs one origin and no cross-origin rules.
"""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler

from freshrank.board import Board
from freshrank.config import RunConfig
from freshrank.doors import own_headers
from freshrank.health import PATH as HEALTH_PATH
from freshrank.metrics import exposition, registry

if TYPE_CHECKING:
    from sim.world import World

AnyRequest = Request[Any, Any, Any]
PAGE = Path(__file__).parent / "page"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
NUM_USERS = 24
"""Users the page offers."""
PROXY_TIMEOUT_S = 5.0
JSON_HEADERS = {"Content-Type": "application/json"}


def page_routes(
    run: RunConfig, board: Board, world: "World | None", ranker_url: str, clock_ms: Callable[[], int]
) -> Sequence[HTTPRouteHandler]:
    """Returns the handlers; `world` is None where no simulator runs, then the user panel says so."""
    own = registry("monitor", lambda: ())
    ranker = httpx.AsyncClient(base_url=ranker_url, timeout=PROXY_TIMEOUT_S, headers=own_headers())
    config_hash = run.config_hash()

    @get("/")
    async def index() -> Response[bytes]:
        return asset("index.html")

    @get("/page/{name:str}")
    async def page_file(request: AnyRequest) -> Response[bytes]:
        return asset(request.path_params["name"])

    @get("/api/state")
    async def state() -> dict[str, Any]:
        return board.state() | {"config_hash": config_hash, "history_ms": 1_000 * run.monitor.history_s}

    @get("/api/history")
    async def history(request: AnyRequest) -> Response[Any]:
        since = request.query_params.get("since", "0")
        if not since.isdigit():
            return refusal(HTTPStatus.BAD_REQUEST, f"since: {since!r} is not allowed; a time in ms")
        return Response(board.history(int(since)))

    @get("/api/users")
    async def users() -> Response[Any]:
        if world is None:
            return refusal(HTTPStatus.NOT_FOUND, "monitor.simulator is empty, so there is no simulated world")
        return Response({"users": list(world.users()[:NUM_USERS])})

    @get("/api/candidates")
    async def candidates(request: AnyRequest) -> Response[Any]:
        user_id, scenario = (request.query_params.get(name, "") for name in ("user_id", "scenario"))
        if world is None:
            return refusal(HTTPStatus.NOT_FOUND, "monitor.simulator is empty, so there is no simulated world")
        now = clock_ms()
        try:
            found = world.candidates(user_id, scenario, now, run.sim.candidates)
        except ValueError as error:
            return refusal(HTTPStatus.BAD_REQUEST, str(error))
        return Response(
            {
                "candidates": {"id": found.id, "features": found.features},
                "user": world.user_features(user_id),
                "context": world.context(user_id, scenario, now),
                "actions": {name: task.action for name, task in run.schema.tasks.items()},
            }
        )

    @post("/api/rank", status_code=HTTPStatus.OK)
    async def rank(request: AnyRequest) -> Response[Any]:
        return await forward(ranker, "/v1/rank", await request.body(), clock_ms)

    @post("/api/feedback", status_code=HTTPStatus.OK)
    async def feedback(request: AnyRequest) -> Response[Any]:
        # Stamped here and told to the page, which asks later whether a model has seen everything up to this time.
        now = clock_ms()
        try:
            stamped = msgspec.json.encode({"ts": now} | msgspec.json.decode(await request.body(), type=dict[str, Any]))
        except msgspec.DecodeError as error:
            return refusal(HTTPStatus.BAD_REQUEST, f"body: {error}")
        return await forward(ranker, "/v1/feedback", stamped, lambda: now)

    @get(HEALTH_PATH)
    async def health() -> Response[str]:
        return Response("ok\n", media_type="text/plain")

    @get("/metrics")
    async def metrics() -> Response[bytes]:
        body, media_type = exposition(own)
        return Response(body, media_type=media_type)

    return [index, page_file, state, history, users, candidates, rank, feedback, health, metrics]


def asset(name: str) -> Response[bytes]:
    """Returns one file of the page; only names that are there, so nothing outside the folder can be asked for."""
    found = {path.name: path for path in PAGE.iterdir() if path.suffix in MEDIA_TYPES}.get(name)
    if found is None:
        return Response(b"not found", status_code=HTTPStatus.NOT_FOUND, media_type="text/plain")
    return Response(found.read_bytes(), media_type=MEDIA_TYPES[found.suffix], headers={"Cache-Control": "no-cache"})


async def forward(ranker: httpx.AsyncClient, path: str, body: bytes, clock_ms: Callable[[], int]) -> Response[Any]:
    """Returns the ranker's answer with the clock of this machine added; a sentence if it does not answer."""
    try:
        answer = await ranker.post(path, content=body, headers=JSON_HEADERS)
        content = msgspec.json.decode(answer.content)
    except httpx.HTTPError as error:
        return refusal(HTTPStatus.BAD_GATEWAY, f"the ranker does not answer: {type(error).__name__}")
    except msgspec.DecodeError:
        return refusal(HTTPStatus.BAD_GATEWAY, f"the ranker answered HTTP {answer.status_code} without JSON")
    if answer.is_success:
        content["now_ms"] = clock_ms()
    return Response(content, status_code=answer.status_code)


def refusal(status: HTTPStatus, sentence: str) -> Response[Any]:
    """Returns an error the page can show."""
    return Response({"error": sentence}, status_code=status)
