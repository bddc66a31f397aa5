"""Errors of the stream, and the operator's next move.

StreamError
|- DecodeError           dead letter and counter, the stream goes on
|- CopartitionError      refuse to start: give both input topics the same number of partitions
|- FencedError           another joiner owns the partition: stop without committing
|- TransactionAbortedError  nothing of the transaction is visible: start again from the committed offsets
|- LostMessagesError     the log no longer holds what open slates need: raise the retention; the text says the choice
|- LocalStoreError       the disk of the spilled state is full, damaged or in use: the text says which; start again
|- OffsetMetadataError   committed by an incompatible release: drain with the old release, or reset the group
`- LogUnavailableError   the broker does not answer: check its address, then start again
"""


class StreamError(Exception):
    """Root of all errors of this package."""


class DecodeError(StreamError):
    """A message that is not what its topic promises; the text names the field and what is allowed."""


class CopartitionError(StreamError):
    """Impressions and feedback do not have the same number of partitions, or not the same owner."""


class FencedError(StreamError):
    """Another producer or a newer group generation has taken over."""


class TransactionAbortedError(StreamError):
    """The broker could not complete a transaction; all of it was dropped."""


class OffsetMetadataError(StreamError):
    """The metadata of a committed offset cannot be read."""


class LocalStoreError(StreamError):
    """The local store of the spilled state cannot be used."""


class LostMessagesError(StreamError):
    """Retention has deleted messages that open slates still need."""


class LogUnavailableError(StreamError):
    """The broker cannot be reached or a topic is missing."""
