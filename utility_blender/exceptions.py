"""What can go wrong between a learned blender and its serving.

BlenderError
|- BlenderUnavailableError   the store does not answer: go on with what is held
|- BlenderVersionError       a stored version cannot be served: go on with what is held, count `reason`
`- PromotionError            the pointer does not move: `reason` says which rule
"""


class BlenderError(Exception):
    """Anything below."""


class BlenderUnavailableError(BlenderError):
    """The store does not answer."""


class BlenderVersionError(BlenderError):
    """A version cannot be read or does not belong here; `reason` is one of `utility_blender.version.REASONS`."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class PromotionError(BlenderError):
    """The pointer may not move like this; `reason` is one of `utility_blender.store.REFUSALS`."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason
