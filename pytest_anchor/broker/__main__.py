"""Where the broker begins: started by :mod:`pytest_anchor.client`, with a listening socket and its settings."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

LISTENER = 3  # the descriptor of the listening socket


def main() -> None:
    """Serve the run until it is over, and nothing of it is open that could still be ended."""
    if os.fork():
        os._exit(0)  # the test process has no child that it does not know
    _close_inherited()
    os.setsid()  # Ctrl-C and a kill of the run's process group pass it by
    os.chdir("/")
    os.umask(0o022)  # whatever a test has made of it
    import signal

    # The end of a machine or a service signals every process in it: this one goes when its work is done.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    _raise_limits()
    line = sys.stdin.buffer.readline()
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    import json
    import socket
    import traceback
    from pathlib import Path

    from ..settings import Settings
    from .processes import Process
    from .server import Server

    start = json.loads(line)
    values = start["settings"]
    settings = Settings(**{**values, "folder": Path(values["folder"])})
    listener = socket.socket(fileno=LISTENER)
    try:
        server = Server(settings, listener, start["generation"], start["identity"])
        signal.signal(signal.SIGTERM, lambda *_: server.hurry())
        server.serve(Process(settings.owner, start["pid"]))
    except BaseException:  # noqa: BLE001 - into its log; a process that lingers would hold the run's lock
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # there is nothing to clean up, but threads that no process waits for


def _close_inherited() -> None:
    """Keep open what is this process's own only: a process that reads from a pipe of the run must see its end."""
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir("/dev/fd")
    for fd in map(int, names):
        if fd > LISTENER:
            with suppress(OSError):  # that of the listing itself
                os.close(fd)


def _raise_limits() -> None:
    """Have as many files open, and as large ones, as the system allows: a test may have lowered that for itself."""
    import resource

    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
        _, most = resource.getrlimit(limit)
        resource.setrlimit(limit, (most, most))
