"""Errors of the model, and the operator's next move.

ModelError
|- ExampleError               dead letter and counter, the trainer goes on
|- TrainingDivergedError      several steps in a row were not finite: look at the data at the offsets logged
|- CheckpointError
|  |- CheckpointCorruptError  this folder is skipped with a warning and the one before it is used
|  |- CheckpointMismatchError the config changed where the weights cannot follow: change it back or use a new folder
|  `- CheckpointFolderError   not all ranks see the same folder: put it on a file system that they share
|- RanksDifferError          a rank was started with another configuration than the lead: give all the same
|- RankLostError             another process of this training job is gone: end, torchrun starts all from the last
|                            checkpoint
|- SnapshotError              never served: keep the old snapshot, count it, heal from the last full one
|  |- SnapshotManifestError   the manifest cannot be read, or lacks a field
|  |- SnapshotLengthError     the payload is torn: not as long as its manifest says
|  |- SnapshotHashError       the payload's bytes are not the ones that were published
|  |- SnapshotFormatError     the payload is not safetensors
|  |- SnapshotFiniteError     a tensor holds NaN or infinity
|  |- SnapshotSchemaError     made for other scenarios, tasks or features
|  `- SnapshotGapError        a delta whose base is not there
`- StoreError
   |- StaleEpochError         another trainer publishes this model: stop this one
   |  `- RolledBackError      this trainer's work was rolled back: start it again, it goes on from before
   |- PointerOrderError       the pointer already names a later version
   |- SnapshotMissingError    the store does not hold what was asked for
   |- RowsLostError           the row store lost its rows: the next full version writes them anew
   `- StoreUnavailableError   the store does not answer: training and serving go on, publishing is tried again
"""


class ModelError(Exception):
    """Root of all errors of this package."""


class ExampleError(ModelError):
    """An `examples` message that is not what the topic promises; the text names the column and what is allowed."""


class TrainingDivergedError(ModelError):
    """Too many steps in a row were refused by the finite guard."""


class CheckpointError(ModelError):
    """A checkpoint that cannot be used."""


class CheckpointCorruptError(CheckpointError):
    """A checkpoint folder is incomplete or its bytes are not the ones that were written."""


class CheckpointMismatchError(CheckpointError):
    """The checkpoint was written under a config that these weights cannot follow; the text says what changed."""


class CheckpointFolderError(CheckpointError):
    """The folder of the checkpoints is not one and the same for all ranks."""


class RanksDifferError(ModelError):
    """The ranks of one training job were not started alike."""


class RankLostError(ModelError):
    """Another rank of this training job is gone or does not answer."""


class SnapshotError(ModelError):
    """A snapshot that must not be served."""


class SnapshotManifestError(SnapshotError):
    """The manifest cannot be read."""


class SnapshotLengthError(SnapshotError):
    """The payload is shorter or longer than its manifest says."""


class SnapshotHashError(SnapshotError):
    """The payload's SHA-256 is not the manifest's."""


class SnapshotFormatError(SnapshotError):
    """The payload is not a safetensors block."""


class SnapshotFiniteError(SnapshotError):
    """The payload holds a value that is not finite."""


class SnapshotSchemaError(SnapshotError):
    """The snapshot belongs to another schema."""


class SnapshotGapError(SnapshotError):
    """A delta does not fit: its base is not the snapshot in hand, or the chain to the last full one is broken."""


class StoreError(ModelError):
    """The snapshot store refused or failed."""


class StaleEpochError(StoreError):
    """A trainer with a higher epoch has taken over publishing."""


class RolledBackError(StaleEpochError):
    """What this trainer published was rolled back; the text says to which version and why."""


class PointerOrderError(StoreError):
    """The pointer moves forward only, and already names a later version."""


class SnapshotMissingError(StoreError):
    """The store holds no such manifest or payload."""


class RowsLostError(StoreError):
    """The row store does not hold the generation of rows that was asked for."""


class StoreUnavailableError(StoreError):
    """The store cannot be reached."""
