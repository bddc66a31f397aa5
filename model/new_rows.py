"""Random weights of new rows, drawn from nothing but the seed and the key."""

import numpy as np
import numpy.typing as npt

from model.hashing import Int64Array, uniforms


def drawn_rows(keys_K: Int64Array, width: int, scale: float, seed: int) -> npt.NDArray[np.float32]:
    """Returns normal draws of standard deviation `scale`, [K, width]: a key's row is the same whenever it is drawn.

    Box and Muller (1958), two columns from two uniform numbers.
    """
    rows_KW = np.empty((len(keys_K), width + width % 2))
    for column in range(0, width, 2):
        radius_K = np.sqrt(-2.0 * np.log1p(-uniforms(keys_K, seed, column)))
        angle_K = 2.0 * np.pi * uniforms(keys_K, seed, column + 1)
        rows_KW[:, column], rows_KW[:, column + 1] = radius_K * np.cos(angle_K), radius_K * np.sin(angle_K)
    drawn_KW: npt.NDArray[np.float32] = (scale * rows_KW[:, :width]).astype(np.float32)
    return drawn_KW
