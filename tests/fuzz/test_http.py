"""The ranker's HTTP service against its own OpenAPI document: whatever is asked, the answer is one it promises."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from ranker.door import Door
from ranker.openapi import ENDPOINTS, Endpoint, openapi_document
from ranker.service import create_app
from ranker.tokens import Tokens
from tests.ranker.given import Trainer, parts

TOKEN = "token-0123456789"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
    ignored_auth,
]


def document() -> dict[str, Any]:
    """Returns the document, with the names of the tests' schema, so that more than the first check is reached."""
    document = openapi_document("1")
    schemas = document["components"]["schemas"]
    schemas["RankRequest"]["properties"]["scenario"]["enum"] = ["home", "search"]
    return document


@pytest.fixture(scope="module")
def door() -> Door:
    given = parts()
    Trainer(given.store).publish()
    given.ranker.follower.round()
    return create_app(
        given.ranker, given.watcher, given.limits, metrics_text=lambda: b"", version="1", tokens=Tokens([TOKEN])
    )


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_every_answer_is_one_that_the_document_promises(door: Door, endpoint: Endpoint, mode: GenerationMode) -> None:
    api = schemathesis.openapi.from_dict(document())
    api.app = door
    if mode is GenerationMode.NEGATIVE and endpoint.body is None:
        pytest.skip("there is nothing to be wrong in a request without a body")

    @settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(api[endpoint.path][endpoint.method].as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        case.call_and_validate(checks=CHECKS, headers={"Authorization": f"Bearer {TOKEN}"})

    check()
