"""A thread beside the event loop that watches something until it is told to stop."""

import threading
from abc import ABC, abstractmethod


class WatchThread(ABC):
    """What a watcher's life is: started with the server, stopped with it, and never what keeps the process alive."""

    def __init__(self, name: str) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.run, name=name, daemon=True)

    def start(self) -> None:
        """Watches in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and waits for it: for what it does at the moment, and at most one of its waits."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @abstractmethod
    def run(self) -> None:
        """Watches until `stop` is called; nothing that fails on the way may end it."""
