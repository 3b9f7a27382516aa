"""A process that forks others, see `forked.py`."""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import json
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from contextlib import redirect_stdout, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from forked import NUMBER, Forking, receive_pid, send
from parsed_once import keep_trees
from processes import reset_signals

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
_PR_SET_CHILD_SUBREAPER = 36


def serve(listener: socket.socket, starter: int) -> dict[str, Any]:
    """Fork what is asked for until a process is gone; returns in each process that was forked, with what it is to do."""
    gone = os.pidfd_open(starter)
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    asking: set[socket.socket] = set()
    waiting: dict[int, socket.socket] = {}
    gc.collect()
    gc.freeze()  # a collection writes to all objects, and so to memory that is shared
    while True:
        readable, _, _ = select.select([gone, listener, woken, *asking], [], [])
        if gone in readable:
            os._exit(0)
        if woken in readable:
            woken.recv(4096)
            _report_exits(waiting)
        if listener in readable:
            asking.add(listener.accept()[0])
        for connection in asking.intersection(readable):
            asking.remove(connection)
            with suppress(OSError):  # the process that asked is gone
                request, fds = _receive(connection)
                if (pid := os.fork()) == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for one in (listener, woken, waker, connection, *asking, *waiting.values()):
                        one.close()
                    _take_over(fds)
                    return request
                for fd in fds:
                    os.close(fd)
                waiting[pid] = connection
                connection.sendall(NUMBER.pack(pid))


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    message, fds, _, _ = socket.recv_fds(connection, 1 << 20, 4)
    if not message.endswith(b"\n"):
        raise ConnectionResetError
    return json.loads(message), fds


def _report_exits(waiting: dict[int, socket.socket]) -> None:
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            with suppress(OSError), waiting.pop(found[0]) as connection:  # no process waits for it
                connection.sendall(NUMBER.pack(os.waitstatus_to_exitcode(found[1])))


def _take_over(fds: list[int]) -> None:
    """Make *fds* the descriptors 0, 1, 2 and so on, and close all others."""
    for number in range(len(fds)):
        while fds[number] < len(fds):
            fds[number] = os.dup(fds[number])
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    os.closerange(len(fds), 1 << 16)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        old = getattr(sys, name)  # which knows of the file that the descriptor was whether one can seek in it
        new = open(number, mode, encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115
        new.reconfigure(line_buffering=name == "stderr")
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def become(arguments: list[str], env: dict[str, str], cwd: str = "/", brokers: str = "") -> None:
    """Do what *arguments*, a command line of Python's, say.

    :param brokers: for a run of pytest: the address of a process that forks brokers.
    """
    if brokers:
        os.setsid()
        Forking(lambda: brokers).install(sys.modules["pytest_anchor.launcher"].System)
        if any(one.startswith("-n") for one in arguments) and (request := _fork_workers()):
            arguments, env, cwd = request["arguments"], request["env"], request["cwd"]
    reset_signals()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    _show(arguments)
    number = next(number for number, one in enumerate(arguments) if one in ("-c", "-m"))
    installed = [entry for entry in sys.path if entry.startswith((sys.prefix, sys.base_prefix))]
    first = cwd if arguments[number] == "-m" else ""
    sys.path[:] = [first, *env.get("PYTHONPATH", "").split(os.pathsep), *installed]
    sys.orig_argv[:] = arguments
    sys.argv[:] = arguments[number:]
    for name in ("processes", "forked"):
        del sys.modules[name]
    tempfile.tempdir = None
    if sys.argv[0] == "-c":
        exec(compile(sys.argv.pop(1), "<string>", "exec"), {"__name__": "__main__"})
    else:
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _show(arguments: list[str]) -> None:
    """Have /proc show *arguments* as this process's."""
    start, end = map(int, Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[45:47])
    text = "\0".join(arguments).encode("utf-8", "surrogateescape")[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def _fork_workers() -> dict[str, Any] | None:
    """Have a child of this process, of the same process group, fork the workers of pytest-xdist.

    Returns in each of them, with what it is to do, and in this process, with nothing.
    """
    here, there = socket.socketpair()
    controller = os.getpid()
    if os.fork():
        there.close()
        import_module("execnet.gateway_io").Popen2IOMaster = partial(_worker_io, here)
        return None
    here.close()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            request, fds = _receive(there)
        except OSError:  # the controller is over
            os._exit(0)
        if child := os.fork():
            os.waitpid(child, 0)
            for fd in fds:
                os.close(fd)
        elif os.fork():
            os._exit(0)
        else:
            while os.getppid() != controller:  # which takes orphans just now
                time.sleep(0.001)
            there.sendall(NUMBER.pack(os.getpid()))
            there.close()
            _take_over(fds)
            return request


def _worker_io(forker: socket.socket, arguments: list[str], execmodel: Any) -> Any:
    """What execnet makes of a worker's process: one that is a child of this process, though it was forked by another."""
    stdin, stdout = os.pipe(), os.pipe()
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        send(forker, [stdin[0], stdout[1], 2], arguments=arguments, env=dict(os.environ), cwd=str(Path.cwd()))
        pid = receive_pid(forker)
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0)
        os.close(stdin[0])
        os.close(stdout[1])
    io = import_module("execnet.gateway_base").Popen2IO(
        os.fdopen(stdin[1], "wb"), os.fdopen(stdout[0], "rb"), execmodel
    )
    io.wait = partial(_wait, pid)
    io.kill = partial(os.kill, pid, signal.SIGKILL)
    return io


def _wait(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _warm_up(folder: Path) -> None:
    """Have pytest import, compile and parse what every run needs, and what one needs that is interrupted."""
    keep_trees()
    folder.mkdir()
    (folder / "pytest.ini").touch()
    test = folder / "warm_up.py"
    test.write_text("def test_it(): raise KeyboardInterrupt")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    with redirect_stdout(io.StringIO()):
        sys.modules["pytest"].main(["-p", "no:cacheprovider", str(test)])
    del sys.modules["warm_up"]


def main() -> None:
    address, starter, *modules, _ = sys.argv[1:]
    for name in modules:
        import_module(name)
    if "pytest" in modules:
        _warm_up(Path(f"{address}.empty"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(128)
    if os.fork():
        os._exit(0)  # it can be reached
    os.setsid()
    request = serve(listener, int(starter))
    code = 0
    try:
        become(**request)
    except SystemExit as end:
        if not (end.code is None or isinstance(end.code, int)):
            raise  # Python prints it
        code = end.code or 0
    _exit(code)


def _exit(code: int) -> None:
    """Exit as Python does, but for taking all modules apart: that writes to all memory, which is shared until then."""
    try:
        threading._shutdown()
    except BaseException:  # noqa: BLE001 - Ctrl-C
        traceback.print_exc()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(code)  # Python has a code of its own for that
    os._exit(code & 0xFF)


if __name__ == "__main__":
    main()
