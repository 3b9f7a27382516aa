"""The process that outlives a killed run, and ends what the run left.

``python -m pytest_anchor.reaper FOLDER`` reads one line from its standard input, holds
``reaper.lock`` in the run's folder, answers ``watching``, and waits until no owner of the run is
left. The kernel wakes it; until then it does nothing, and has imported next to nothing. It then
sweeps if the record says that something may be running, and goes.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

from .locks import has_owners, hold, is_held, open_file, read_small, wait_for_owners

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from .registry import Run

START_TIMEOUT = 15.0  # seconds until it must be watching
BUDGET = 600.0  # seconds that it goes on trying after the run's death

LOG = "reaper.log"
_LOCK = "reaper.lock"
_PROBLEM = "reaper.problem"
_WATCHING = "watching"


def ensure(folder: Path, *, run_id: str, base_url: str, key: str, remove: bool = False) -> bool:
    """See to it that the run in *folder* has a reaper.

    :param remove: whether it is also to delete the folder once nothing in it is open, because nobody will read it.
    :returns: whether one is watching; if not, :func:`problem` says why.
    """
    if is_watching(folder):
        return True
    import json

    from filelock import FileLock

    from . import detached
    from .errors import Secret

    try:
        with FileLock(folder / "reaper.start", timeout=START_TIMEOUT, mode=0o600):
            if is_watching(folder):  # another owner was faster
                return True
            told = Secret(json.dumps({"run_id": run_id, "base_url": base_url, "key": key, "remove": remove}))
            said = detached.start([__name__, str(folder)], told, folder / LOG, timeout=START_TIMEOUT)
        if said == _WATCHING:
            return True
    except (detached.StartError, OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
        said = str(error)
    with suppress(OSError), os.fdopen(open_file(folder / _PROBLEM, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
        file.write(said.rpartition("\n")[2])
    return False


def is_watching(folder: Path) -> bool:
    """Whether the run in *folder* has a living reaper that watches, or sweeps."""
    try:
        return is_held(folder / _LOCK)
    except OSError:
        return False


def problem(folder: Path) -> str:
    """Why the run in *folder* goes on without a reaper, ``""`` if it need not."""
    return read_small(folder / _PROBLEM)


def main(folder: str) -> None:
    """Watch the run in *folder*. All that is said goes to ``reaper.log`` there."""
    import signal

    told = sys.stdin.readline()
    # Who shuts down a machine or a service signals everyone in it: this process goes when its work is done.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    lock = hold(os.path.join(folder, _LOCK))
    if lock is None or not told:
        return  # another one is watching, or who started this one has gone
    print(_WATCHING, flush=True)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    while lock is not None:
        wait_for_owners(folder)
        _reap(folder, told)
        # Let go before the last look: an owner that came meanwhile has joined the run before it saw the lock held.
        os.close(lock)
        lock = hold(os.path.join(folder, _LOCK)) if has_owners(folder) else None


def _reap(folder: str, told: str) -> None:
    """Sweep what the run left, as long as it has no owner: a crashed worker's place is taken by another."""
    import json
    from pathlib import Path

    from .registry import Run

    deadline = time.monotonic() + BUDGET
    run = Run(Path(folder), "reaper")
    while not run.claim():  # the next run, or somebody at the command line, is at it
        if not run.folder.is_dir() or has_owners(folder) or time.monotonic() > deadline:
            return
        time.sleep(1.0)
    try:
        settings = json.loads(told)
        state = run.read()
        if not state.settled:
            _sweep(run, settings, deadline)
        if state.settled and settings["remove"] and not has_owners(folder):
            run.remove()
    finally:
        run.release()


def _sweep(run: Run, settings: dict[str, str], deadline: float) -> None:
    from .api import AnchorAPI
    from .report import describe, title, why
    from .sweep import KILLED_GRACE, LONG_PAUSES, sweep_run

    state = run.state
    if has_owners(run.folder):
        return
    _log(f"no process of the run is left: {describe(state)}")
    said: dict[str, str] = {}

    def tell() -> None:
        for nonce, record in state.records.items():
            if record.how == "reaper":
                text = f"{title(record)}: {'already over' if record.already else 'ended'}"
            elif (record.open or record.unresolved) and record.error:
                text = f"{title(record)}: {why(record)}"
            else:
                continue
            if said.get(nonce) != text:
                said[nonce] = text
                _log(text)

    listing = sweep_run(
        AnchorAPI(settings["base_url"], settings["key"]),
        run,
        settings["run_id"],
        how="reaper",
        timeout=deadline - time.monotonic(),
        pauses=LONG_PAUSES,
        grace=KILLED_GRACE,
        goes_on=lambda: not has_owners(run.folder),
        after_round=tell,
    )
    tell()
    if listing is not None:
        _log(str(listing))
    if has_owners(run.folder):
        _log("the run has a process again")
    else:
        _log("done" if state.settled else f"given up, and left to the next run: {describe(state)}")


def _log(text: str) -> None:
    from .errors import printable

    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {printable(text)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
