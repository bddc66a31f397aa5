"""API tokens: who may come in. Kept as hashes, compared in constant time, never shown."""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable

MIN_CHARS = 16
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")
CHALLENGES = ((b"www-authenticate", b'Bearer realm="freshrank"'), (b"www-authenticate", b'Basic realm="freshrank"'))
"""What an answer 401 says: programs send a Bearer token; a browser asks its user, who gives it as the password."""


class Tokens:
    """The tokens that open a door; empty: the door is open to all.

    >>> tokens = Tokens.parse("0123456789abcdef,fedcba9876543210")
    >>> tokens.holder("Bearer fedcba9876543210"), tokens.holder("Bearer guessed"), tokens.holder(None)
    (1, None, None)
    """

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        self._digests = [_digest(token.encode()) for token in tokens]

    @classmethod
    def parse(cls, text: str) -> "Tokens":
        """Returns the tokens of a comma-separated list; several, so that they can be changed one after the other.

        Raises:
            ValueError: one cannot be used; the text says which by its place and does not show it.
        """
        return cls(split(text))

    def __bool__(self) -> bool:
        return bool(self._digests)

    def holder(self, authorization: str | None) -> int | None:
        """Returns the place in the list of the token in an `Authorization` header; None if there is none of ours."""
        given = None if authorization is None else _given(authorization)
        if given is None:
            return None
        digest = _digest(given)
        # All are compared, so that the time taken does not tell which one came near.
        matches = [place for place, known in enumerate(self._digests) if hmac.compare_digest(known, digest)]
        return matches[0] if matches else None


def split(text: str) -> list[str]:
    """Returns the tokens of a comma-separated list, checked; see `Tokens.parse`."""
    tokens = [token.strip() for token in text.split(",")] if text.strip() else []
    for place, token in enumerate(tokens, start=1):
        if len(token) < MIN_CHARS:
            raise ValueError(f"token {place}: {len(token)} characters are not allowed; at least {MIN_CHARS}")
        if not _TOKEN.fullmatch(token):
            raise ValueError(f"token {place}: has a character that is not allowed; letters, digits and ._~+/=-")
    return tokens


def _given(authorization: str) -> bytes | None:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1", "replace")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return None
    return None


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
