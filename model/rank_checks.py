"""What has to be right on all ranks, or else it is one clear line, the same on each of them."""

import secrets
from pathlib import Path

from model.exceptions import CheckpointFolderError
from model.ranks import Ranks


def problem_of_any(ranks: Ranks, problem: str) -> str:
    """Returns what the ranks have to say in one line, the same on all of them; "" if none has anything."""
    problems = [one.decode() for one in ranks.all_gather(problem.encode())]
    if len(set(problems)) == 1:
        return problems[0]
    return "; ".join(f"rank {rank}: {one}" for rank, one in enumerate(problems) if one)


def check_shared(ranks: Ranks, folder: Path) -> None:
    """Returns if all ranks see what the lead writes into the folder, which it makes if it is not there.

    Raises:
        CheckpointFolderError: on every rank; names the folder, and who does not see it or cannot write there.
    """
    if ranks.size == 1:
        return
    name, problem = f".aside-{secrets.token_hex(8)}", ""
    if ranks.is_lead:
        try:
            (folder / name).mkdir(parents=True)
        except OSError as error:
            name, problem = "", f"cannot write there: {error}"
    name = ranks.broadcast(name.encode()).decode()
    if name and not (folder / name).is_dir():
        problem = "does not see what rank 0 writes there; all ranks must share one folder"
    problem = problem_of_any(ranks, problem)
    if ranks.is_lead and name:
        (folder / name).rmdir()
    if problem:
        raise CheckpointFolderError(f"checkpoint.folder: {folder}: {problem}")
