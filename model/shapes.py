"""Whether given weights are of the model they are given to."""

from collections.abc import Mapping

from torch import Tensor


def check_same_shapes(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuses weights of another model.

    Raises:
        ValueError: names the first difference.
    """
    for name in sorted(given.keys() | expected.keys()):
        theirs = tuple(given[name].shape) if name in given else "nothing"
        ours = tuple(expected[name].shape) if name in expected else "nothing"
        if theirs != ours:
            raise ValueError(f"{name}: the state has {theirs}, this configuration needs {ours}")


def check_same(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuses weights of another model, or of another element type.

    Raises:
        ValueError: names the first difference.
    """
    check_same_shapes(given, expected)
    for name in sorted(given):
        if given[name].dtype != expected[name].dtype:
            raise ValueError(f"{name}: the state has {given[name].dtype}, this model needs {expected[name].dtype}")
