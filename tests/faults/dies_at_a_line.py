"""Creates sessions in forked processes, each of which is killed before another line of the creation is run.

Reads the settings of a run from its first argument and the numbers of lines from its second (none: every line),
gives each process a run of its own, and prints their lines: what was about to be run, and how the process ended.
"""

from __future__ import annotations

import gc
import http.client
import itertools
import json
import os
import signal
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from pytest_anchor.api import AnchorAPI
from pytest_anchor.api.caller import Caller
from pytest_anchor.broker.owner import Owner, Request
from pytest_anchor.budget import file_store, rules
from pytest_anchor.budget.admission import Admission
from pytest_anchor.registry.journal import Run
from pytest_anchor.settings import Settings, key_from_environment

TRACED: dict[CodeType, str] = {
    function.__code__: function.__qualname__
    for function in (
        Owner.create,
        Owner._create_in_turn,
        Owner._create,
        Admission.wait,
        file_store.FileStore.update,
        file_store._write,
        rules.try_admit,
        Run.append,
        Run._write,
        Run._guarded.__wrapped__,
        AnchorAPI.create,
        Caller.call,
        Caller._attempts,
        Caller._attempt,
        http.client.HTTPConnection.endheaders,
        http.client.HTTPConnection._send_output,
        http.client.HTTPConnection.send,
        http.client.HTTPConnection.getresponse,
    )
}


def create(values: dict[str, Any], number: int, said: int) -> None:
    """Create a session in a run of its own, and be killed before the line *number*."""
    folder = Path(values["folder"]) / f"run{number:04}"
    settings = Settings(**{**values, "folder": folder, "run_id": folder.name})
    run = Run(folder)
    run.join()
    owner = Owner("main", settings, run, AnchorAPI(settings.base_url, key_from_environment()), 100)
    lines = itertools.count()

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if frame.f_code not in TRACED:
            return None
        if event == "line" and next(lines) == number:
            os.write(said, f"{TRACED[frame.f_code]} {frame.f_lineno}".encode())
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    owner.create({}, Request(f"line {number}"))
    os._exit(0)


def main() -> None:
    values = json.loads(sys.argv[1])
    told = json.loads(sys.argv[2])
    gc.freeze()  # a collection in a child would write to all that it shares
    for number in told or itertools.count():
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            create(values, number, write)
        os.close(write)
        _, status = os.waitpid(pid, 0)
        with os.fdopen(read) as pipe:
            print(json.dumps([number, pipe.read(), os.waitstatus_to_exitcode(status)]), flush=True)
        if status != signal.SIGKILL:  # it had no such line
            break


if __name__ == "__main__":
    main()
