"""A version of learned weights: what is written is what is read, to the last bit, or a reason."""

import hashlib
import json
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.utility_blender.some_versions import some_version
from utility_blender.exceptions import BlenderVersionError
from utility_blender.version import decode_version


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_a_version_comes_back_to_the_last_bit(numbers: list[float]) -> None:
    version = some_version(policy={"base": {"home": numbers}})
    assert decode_version(version.encode()) == version


def test_a_flipped_bit_anywhere_is_found() -> None:
    data = some_version().encode()
    for place in (0, 40, 64, 65, 200, len(data) - 1):
        torn = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(BlenderVersionError, match="sha256") as error:
            decode_version(torn)
        assert error.value.reason == "hash"
    with pytest.raises(BlenderVersionError, match="sha256"):
        decode_version(data[:-1])


@pytest.mark.parametrize(
    "change",
    [{"version": 0}, {"version": "x"}, {"scale": {"home": {"click": 1.0}}}, {"tasks": None}, {"base_version": 7}],
)
def test_what_is_no_version_is_refused_though_its_hash_is_right(change: dict[str, Any]) -> None:
    found = json.loads(some_version().encode().partition(b"\n")[2]) | change
    with pytest.raises(BlenderVersionError) as error:
        decode_version(signed(found))
    assert error.value.reason == "format"
    found.pop("gate")
    with pytest.raises(BlenderVersionError, match="KeyError"):
        decode_version(signed(found))


def signed(document: Any) -> bytes:
    body = json.dumps(document).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def test_a_number_that_is_not_finite_is_never_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        some_version(policy={"base": {"home": [math.nan]}}).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 0}, "version: 0 is not allowed; at least 1"),
        ({"version": 3, "base": 3}, "base_version: 3 is not allowed; 0 to 2"),
        ({"scale": {"home": {"click": 1.0, "order": 0.0}}}, "scale.home: "),
    ],
)
def test_settings_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        some_version(**change)
