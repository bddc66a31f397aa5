"""How a command ends: one table of exit codes, and the sentence a known failure is told in.

The table is what `docs/cli.md` prints; a supervisor may act on the codes.
"""

import errno
from enum import IntEnum
from typing import NamedTuple

from freshrank.strict import ConfigError


class ExitCode(IntEnum):
    """Exit codes of every `freshrank` command; `EXIT_CODES` says what each means."""

    OK = 0
    DEFECT = 1
    USAGE = 2
    PORT_TAKEN = 3
    REDIS_GONE = 4
    BROKER_GONE = 5
    DISK = 6
    CHECKPOINT = 7
    FENCED = 8
    NOT_LEARNED = 9
    CHILD_FAILED = 10
    DIVERGED = 11
    ROLLED_BACK = 12
    RANK_LOST = 13


class ExitRow(NamedTuple):
    """One line of the table: what happened, and the operator's next move."""

    code: ExitCode
    meaning: str
    next_move: str


EXIT_CODES = (
    ExitRow(ExitCode.OK, "done, or stopped cleanly by SIGTERM or Ctrl-C", "nothing"),
    ExitRow(
        ExitCode.DEFECT,
        "a defect of freshrank: the log holds the traceback; of `verify-join`: a label is not as it must be",
        "report it, with what `verify-join --save` writes",
    ),
    ExitRow(ExitCode.USAGE, "a wrong argument or setting; the line on stderr names it", "correct it"),
    ExitRow(ExitCode.PORT_TAKEN, "a port is taken; the line names it and its setting", "free it or change it"),
    ExitRow(ExitCode.REDIS_GONE, "Redis does not answer", "start it, or correct `redis.url`"),
    ExitRow(ExitCode.BROKER_GONE, "Kafka does not answer, or lacks a topic", "start it, or `freshrank topics create`"),
    ExitRow(ExitCode.DISK, "a file cannot be written: disk full or not allowed", "make room, start again"),
    ExitRow(ExitCode.CHECKPOINT, "the checkpoint does not fit the configuration", "change it back, or a new folder"),
    ExitRow(ExitCode.FENCED, "another process has taken over this one's work", "leave it; it is not needed any more"),
    ExitRow(ExitCode.NOT_LEARNED, "`up` ended before it served what it had learned", "run longer; read its logs"),
    ExitRow(ExitCode.CHILD_FAILED, "a process of `up` failed again and again", "read its log; the line names it"),
    ExitRow(ExitCode.DIVERGED, "training gives numbers that are not finite", "read the data at the offsets logged"),
    ExitRow(
        ExitCode.ROLLED_BACK,
        "the trainer's versions were rolled back, by its gate or by hand",
        "start it again: it goes on from before; read `freshrank snapshot show`",
    ),
    ExitRow(
        ExitCode.RANK_LOST,
        "another rank of the training job is gone, or has ended with an error",
        "nothing: torchrun starts all of them again from the last checkpoint; read that rank's log",
    ),
)


class CommandError(Exception):
    """A failure with its sentence and exit code, raised where the wiring knows both."""

    def __init__(self, code: ExitCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def explain(error: BaseException) -> tuple[ExitCode, str]:
    """Returns exit code and one-line sentence of a failure; `DEFECT` for what nobody expected."""
    from model import exceptions as model_errors
    from stream import exceptions as stream_errors
    from stream.kafka_security import ClientSettingError
    from utility_blender import exceptions as blender_errors

    sentence = " ".join(str(error).split())
    if isinstance(error, CommandError):
        return error.code, sentence
    if isinstance(error, ConfigError | ClientSettingError):
        return ExitCode.USAGE, sentence
    if isinstance(error, stream_errors.FencedError):
        return ExitCode.FENCED, f"Another joiner has taken over: {sentence}"
    if isinstance(error, stream_errors.LostMessagesError):
        return ExitCode.USAGE, sentence
    if isinstance(error, stream_errors.LocalStoreError):
        return ExitCode.DISK, sentence
    if isinstance(error, stream_errors.StreamError):
        return ExitCode.BROKER_GONE, sentence
    if isinstance(error, model_errors.RolledBackError):
        return ExitCode.ROLLED_BACK, f"Rolled back: {sentence}"
    if isinstance(error, model_errors.StaleEpochError):
        return ExitCode.FENCED, f"Another trainer has taken over: {sentence}"
    if isinstance(error, model_errors.CheckpointError):
        return ExitCode.CHECKPOINT, sentence
    if isinstance(error, model_errors.RankLostError):
        return ExitCode.RANK_LOST, sentence
    if isinstance(error, model_errors.RanksDifferError):
        return ExitCode.USAGE, sentence
    if isinstance(error, model_errors.TrainingDivergedError):
        return ExitCode.DIVERGED, sentence
    if isinstance(error, blender_errors.PromotionError | blender_errors.BlenderVersionError):
        return ExitCode.USAGE, sentence
    if isinstance(error, model_errors.StoreUnavailableError | blender_errors.BlenderUnavailableError):
        return ExitCode.REDIS_GONE, sentence
    if type(error).__module__.startswith("redis."):
        return ExitCode.REDIS_GONE, f"Redis does not answer ({sentence}); start it, or correct redis.url"
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return ExitCode.PORT_TAKEN, sentence
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return ExitCode.DISK, f"Cannot write {error.filename or 'a file'}: {error.strerror}"
    return ExitCode.DEFECT, f"This is a defect of freshrank: {type(error).__name__}: {sentence}"
