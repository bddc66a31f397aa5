"""The page's doors for orders: `GET /api/controls` says what there is, `POST /api/controls` has one done."""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler

from freshrank.controls import Controls, Order, refusal_of
from freshrank.timeline import Timeline

AnyRequest = Request[Any, Any, Any]


def control_routes(controls: Controls, timeline: Timeline, clock_ms: Callable[[], int]) -> Sequence[HTTPRouteHandler]:
    """Returns the handlers; what is asked for stands in the timeline."""

    @get("/api/controls")
    async def offered() -> dict[str, Any]:
        return await controls.can()

    @post("/api/controls", status_code=HTTPStatus.OK)
    async def order(request: AnyRequest) -> Response[Any]:
        body = await request.body()
        refused = refusal_of(request.headers, body)
        if refused is not None:
            return Response({"error": refused}, status_code=HTTPStatus.FORBIDDEN)
        try:
            wanted = msgspec.json.decode(body, type=Order)
            await controls.do(wanted)
        except ConnectionError as error:
            return Response({"error": str(error)}, status_code=HTTPStatus.BAD_GATEWAY)
        except ValueError as error:  # what msgspec raises is one
            return Response({"error": str(error)}, status_code=HTTPStatus.BAD_REQUEST)
        timeline.note(clock_ms(), "you", wanted.sentence())
        return Response({"done": wanted.sentence()})

    return [offered, order]
