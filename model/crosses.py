"""Crossed features: pairs of a request's and an item's values, such as a user with a tag, as values of their own.

The cross-product transformation of Wide & Deep (Cheng et al., 2016), hashed. There the pairs feed a linear part of the
model; here they are one more list field, whose mean is one more block of the network's input.

Letters: B rows, N pairs of a batch.
"""

import numpy as np

from model.hashing import Int64Array, pair_keys
from model.key_lists import KeyLists

CROSS_SIGN = "&"
"""Between the names of two crossed fields; `*` is the product of two embeddings."""


def cross_keys(field: str, request: KeyLists, item: KeyLists, request_index_B: Int64Array) -> KeyLists:
    """Returns every pair of a value of the row's request and a value of the row, [B] lists, keys of `field`.

    All pairs of the request's first value come first. A pair with a missing value is missing.
    """
    num_request_B, num_item_B = request.lengths[request_index_B], item.lengths
    offsets = np.concatenate([[0], np.cumsum(num_request_B * num_item_B)])
    row_N = np.repeat(np.arange(len(request_index_B)), np.diff(offsets))
    within_N = np.arange(offsets[-1]) - offsets[row_N]
    place_N, item_place_N = np.divmod(within_N, num_item_B[row_N])
    first_N = request.keys_N[request.offsets[request_index_B][row_N] + place_N]
    second_N = item.keys_N[item.offsets[row_N] + item_place_N]
    return KeyLists(pair_keys(field, first_N, second_N), offsets)
