"""Which messages of a partition the state still rests on: exact, in about a bit per message.

Ten million open slates must not cost ten million objects just to know the oldest of them.
"""

_BLOCK_BITS = 8
_MASK = (1 << _BLOCK_BITS) - 1


class NeededOffsets:
    """A set of offsets with a cheap minimum: per block of 256 offsets a bit mask.

    A new block is always newer than the ones before, for a topic is read in offset order: so the first block of the
    dict is the oldest.

    >>> needed = NeededOffsets()
    >>> for offset in (3, 700, 701): needed.add(offset)
    >>> needed.remove(3); needed.oldest(default=900)
    700
    """

    def __init__(self) -> None:
        self._blocks: dict[int, int] = {}

    def add(self, offset: int) -> None:
        """Adds an offset; at least as new a block as any before."""
        block = offset >> _BLOCK_BITS
        self._blocks[block] = self._blocks.get(block, 0) | 1 << (offset & _MASK)

    def remove(self, offset: int) -> None:
        """Removes an offset that was added."""
        block = offset >> _BLOCK_BITS
        rest = self._blocks[block] & ~(1 << (offset & _MASK))
        if rest:
            self._blocks[block] = rest
        else:
            del self._blocks[block]

    def oldest(self, default: int) -> int:
        """Returns the smallest offset; `default` if there is none."""
        for block, mask in self._blocks.items():
            return (block << _BLOCK_BITS) + (mask & -mask).bit_length() - 1
        return default

    def blocks(self) -> dict[int, int]:
        """Returns the bit mask of each block of 256 offsets; for snapshots."""
        return dict(self._blocks)

    def load_blocks(self, blocks: dict[int, int]) -> None:
        """Takes up what `blocks` returned."""
        self._blocks = dict(sorted(blocks.items()))
