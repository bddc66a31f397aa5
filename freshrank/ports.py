"""Listening sockets taken before anything else starts, so that a taken port is a sentence and not a stack of tries."""

import errno
import socket

from freshrank.exits import CommandError, ExitCode


def bind(host: str, port: int, setting: str) -> socket.socket:
    """Returns a socket bound to `host:port`, not yet listening.

    Raises:
        CommandError: it is taken, or not this machine's; the sentence names port and setting.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            sentence = f"Port {port} is taken; stop the other program or change {setting}"
            raise CommandError(ExitCode.PORT_TAKEN, sentence) from error
        raise CommandError(ExitCode.USAGE, f"{setting}: cannot listen on {host}:{port}: {error.strerror}") from error
    return listener
