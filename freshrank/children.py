"""One child process: started so that it cannot outlive us, watched, and ended with all that it started itself."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_ASK_AND_EXEC = """\
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and what is ignored stays so over exec
if os.getppid() == int(sys.argv[1]):  # else the parent ended before we asked
    os.execv(sys.argv[2], sys.argv[2:])
"""
_LAST_WORDS_BYTES = 4_096
_WAIT_STEP_S = 0.02


class Child:
    """A process in a group of its own, its output in a file. Start it from the main thread.

    The kernel kills it when the thread that started it ends, so that not even a SIGKILL of ours leaves it behind
    (Linux only; elsewhere an orphan has to be stopped by hand).
    """

    def __init__(self, argv: Sequence[str], log_path: Path, env: Mapping[str, str] | None = None) -> None:
        """Starts `argv` with the environment `env` (none: ours); output is appended to `log_path`.

        Raises:
            OSError: the program does not exist or the log cannot be written.
        """
        program = shutil.which(argv[0])
        if program is None:
            raise FileNotFoundError(errno.ENOENT, "no such program", argv[0])
        self.log_path = log_path
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                _dying_with_parent([program, *argv[1:]]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id, and id of its group."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Returns how it ended: its code, minus a signal's number, or None while it runs. Sweeps up its group."""
        if self._process.returncode is None and self._has_ended():
            # As long as it is not reaped its id is nobody else's, so that the group can only be its own.
            self._signal_group(signal.SIGKILL)
            self._process.wait()
        return self._process.returncode

    def stop(self, timeout_s: float) -> int:
        """Asks it to end (SIGTERM), after `timeout_s` kills it with its group; returns how it ended."""
        if self.exit_code() is None:
            self._process.terminate()
            if not self.ends_within(timeout_s):
                self.kill()
        return self._process.returncode

    def kill(self) -> int:
        """Ends it with its group at once (SIGKILL); returns how it ended."""
        if self.exit_code() is None:
            self._signal_group(signal.SIGKILL)
            self._process.wait()
        return self._process.returncode

    def pause(self) -> None:
        """Stops it with its group (SIGSTOP), until `resume`; one that is stopped takes no SIGTERM."""
        if self.exit_code() is None:
            self._signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        if self.exit_code() is None:
            self._signal_group(signal.SIGCONT)

    def rss_bytes(self) -> int:
        """Returns its resident memory; 0 once it has ended, or where there is no /proc."""
        try:
            num_pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return num_pages * os.sysconf("SC_PAGE_SIZE")

    def last_words(self) -> str:
        """Returns the last line of its output; empty if there is none."""
        with self.log_path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - _LAST_WORDS_BYTES))
            lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def ends_within(self, timeout_s: float) -> bool:
        """Waits until it has ended, for at most `timeout_s`; returns whether it has."""
        deadline_s = time.monotonic() + timeout_s
        while self.exit_code() is None and time.monotonic() < deadline_s:
            time.sleep(_WAIT_STEP_S)
        return self.exit_code() is not None

    def _signal_group(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # the last of the group has just ended
            return


def _dying_with_parent(argv: Sequence[str]) -> list[str]:
    """Returns a command line that runs `argv` in the same process, after asking the kernel to end it with its parent.

    Not a `preexec_fn`: that runs Python between fork and exec, which may hang where the parent has threads.
    """
    if not sys.platform.startswith("linux"):
        return list(argv)
    return [sys.executable, "-I", "-S", "-c", _ASK_AND_EXEC, str(os.getpid()), *argv]
