"""A network with other weights, beside the one that serves."""

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from model.network import Network
from model.shapes import check_same


def with_weights(net: Network, dense: Mapping[str, Tensor]) -> Network:
    """Returns a network like `net` with copies of other weights, as its `state_dict` names them.

    Only the modules are copied beside; weights that are about to be replaced are not, nor drawn anew.

    Raises:
        ValueError: names, shapes or types are not those of `net`.
    """
    state = net.state_dict(keep_vars=True)
    check_same(dense, state)
    weights: dict[int, Tensor] = {}
    for name, tensor in state.items():
        fresh = dense[name].clone()
        weights[id(tensor)] = nn.Parameter(fresh, requires_grad=False) if isinstance(tensor, nn.Parameter) else fresh
    twin: Network = copy.deepcopy(net, weights)
    return twin
