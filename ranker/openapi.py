"""The OpenAPI document, made from the structs of `ranker.api`, and a page that shows it without outside assets."""

import base64
import hashlib
import html
from typing import Any, NamedTuple

import msgspec

from ranker.api import (
    ErrorResponse,
    FeedbackRequest,
    FeedbackResponse,
    HealthResponse,
    ModelResponse,
    RankRequest,
    RankResponse,
)


class Endpoint(NamedTuple):
    """One path of the service. `answers` names the struct per status; None: plain text."""

    method: str
    path: str
    summary: str
    body: Any
    answers: dict[int, Any]


GUARDED: dict[int, Any] = dict.fromkeys((401, 403, 415, 429), ErrorResponse)
"""What the door answers, see `ranker.door`."""
TAKES_BODY = dict.fromkeys((400, 401, 403, 408, 413, 415, 429, 503), ErrorResponse)

ENDPOINTS = (
    Endpoint(
        "post",
        "/v1/rank",
        "Order candidates for a user and log the slate as shown.",
        RankRequest,
        {200: RankResponse} | TAKES_BODY,
    ),
    Endpoint(
        "post",
        "/v1/feedback",
        "Hand in what users did: one action, or a list of them.",
        FeedbackRequest | list[FeedbackRequest],
        {202: FeedbackResponse} | TAKES_BODY,
    ),
    Endpoint(
        "get",
        "/v1/health",
        "Whether it answers, and what it has to do without.",
        None,
        {200: HealthResponse, 503: HealthResponse},
    ),
    Endpoint(
        "get", "/v1/model", "The version that serves, freshness and counters.", None, {200: ModelResponse} | GUARDED
    ),
    Endpoint("get", "/metrics", "Metrics in the Prometheus text format.", None, {200: None} | GUARDED),
)


def openapi_document(version: str) -> dict[str, Any]:
    """Returns the document (OpenAPI 3.1) as plain JSON."""
    types = [kind for e in ENDPOINTS for kind in (e.body, *e.answers.values()) if kind is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schema_of = dict(zip(map(repr, types), schemas, strict=True))

    def content(kind: Any) -> dict[str, Any]:
        if kind is None:
            return {"text/plain": {"schema": {"type": "string"}}}
        return {"application/json": {"schema": schema_of[repr(kind)]}}

    paths: dict[str, Any] = {}
    for e in ENDPOINTS:
        operation: dict[str, Any] = {
            "summary": e.summary,
            "operationId": e.path.strip("/").replace("/", "_"),
            "responses": {
                str(status): {"description": STATUSES[status], "content": content(kind)}
                for status, kind in e.answers.items()
            },
        }
        if 401 not in e.answers:
            operation["security"] = []
        if e.body is not None:
            operation["requestBody"] = {"required": True, "content": content(e.body)}
        paths.setdefault(e.path, {})[e.method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "freshrank ranker", "version": version},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


STATUSES = {
    200: "Answered.",
    202: "On its way to the log.",
    400: "A field is not as it should be; the error names it.",
    401: "A valid API token is needed.",
    403: "A page of another address asks.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is compressed.",
    429: "Too many requests of this client; Retry-After says when to try again.",
    503: "Not now: too much at once, the log's buffer is full, or it is starting. Try again.",
}


def openapi_page(document: dict[str, Any]) -> str:
    """Returns the document as one HTML page: endpoints first, then the structs they speak of."""
    parts = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {path}</code></h2><p>{html.escape(operation['summary'])}</p><ul>")
            bodies = [("body", operation["requestBody"])] if "requestBody" in operation else []
            for name, part in (*bodies, *operation["responses"].items()):
                schemas = ", ".join(_type_name(media["schema"]) for media in part["content"].values())
                parts.append(f"<li>{name}: {schemas} {html.escape(part.get('description', ''))}</li>")
            parts.append("</ul>")
    for name, schema in document["components"]["schemas"].items():
        parts.append(f'<h3 id="{name}">{name}</h3><p>{html.escape(schema.get("description", ""))}</p><table>')
        for field, kind in schema.get("properties", {}).items():
            need = "required" if field in schema.get("required", ()) else "optional"
            parts.append(f"<tr><td><code>{field}</code><td>{_type_name(kind)}<td>{need}</tr>")
        parts.append("</table>")
    return _PAGE.format(style=_STYLE, title=html.escape(document["info"]["title"]), content="\n".join(parts))


def _type_name(schema: dict[str, Any]) -> str:
    """Returns a JSON schema as a short HTML text, with links to the structs."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type_name(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"<code>{html.escape(str(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type_name(schema.get('items', {}))}"
    if schema.get("type") == "object":
        return f"mapping to {_type_name(schema.get('additionalProperties') or {})}"
    return str(schema.get("type", "any value"))


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 48rem; margin: 2rem auto; padding: 0 1rem }
code { font-size: 14px } td { padding: 0 1rem 0 0; vertical-align: top }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
PAGE_POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'"
"""Content-Security-Policy of the page: its own style and nothing else."""

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>{style}</style>
<h1>{title}</h1><p>The same as <a href="/openapi.json">OpenAPI JSON</a>.</p>
{content}
"""
