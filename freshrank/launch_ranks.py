"""`freshrank train --ranks N`: torchrun's own agent, started from here, with this very command on every rank."""

import logging
import os
import uuid

from freshrank.config import RunConfig
from freshrank.exits import CommandError, ExitCode
from freshrank.supervisor import python_argv

_logger = logging.getLogger(__name__)
MAX_RESTARTS = 100
"""Times that all ranks are started again, from the last checkpoint, after one has failed. torchrun counts them over the
whole life of a job, which may be months. A wrong configuration is found before the first start."""


def is_rank() -> bool:
    """Returns whether this process was started by torchrun."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launch_ranks(run: RunConfig, num_ranks: int, threads: int) -> None:
    """Runs `freshrank train` on so many ranks of this machine until they end, or SIGTERM or Ctrl-C comes.

    Raises:
        ConfigError: the first mistake of the configuration, before anything is started.
        CommandError: a rank has failed more often than is borne; the sentence says which, and how it ended.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _ = run.schema, run.model, run.trainer, run.store, run.checkpoint, run.monitor  # built when first read
    argv = python_argv("freshrank.cli", "train", *run.arguments, "--threads", str(threads))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # or torchrun sets it, and says so at length
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=MAX_RESTARTS,
        monitor_interval=0.5,
    )
    try:
        elastic_launch(config, argv[0])(*argv[1:])
    except SignalException as error:
        _logger.info("All ranks have been stopped. signal=%s", error.sigval.name)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise CommandError(
            ExitCode.CHILD_FAILED, f"Rank {rank} of {num_ranks} has failed, exit code {failure.exitcode}; read its log"
        ) from error
