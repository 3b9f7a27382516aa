"""Downloads recordings: the API makes them some time after a session's end, so it is asked again and again."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..background import DaemonThreadPool
from ..errors import AnchorAPIError, AnchorRegistryError, is_transient_status, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..api import AnchorAPI
    from ..registry.journal import Run
    from ..registry.records import Record
    from .output import OutputFolder

TIMEOUT = 30.0  # seconds after it was first asked for in which a recording has to be there
AT_ONCE = 8  # downloads
PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds between attempts; the last repeats
MOST_FAILED = 3  # attempts that get no answer, or one of 5xx, each of them several tries
POLL_INTERVAL = 0.1  # seconds
FAILED = ("failed", "error")  # outcomes
NOT_YET = (202, 204, 401, 404, 409, 425)  # what may be answered as long as there is none


class _Attempt(NamedTuple):
    """An attempt to download a recording.

    :param due: in ``time.monotonic()`` seconds, like *deadline*.
    :param number: of those before it.
    """

    record: Record
    due: float
    deadline: float
    number: int = 0


class Recordings:
    """The recordings of a run's sessions. Safe to use from several threads.

    :param only_failed: whether only those are kept whose test has failed.
    """

    def __init__(self, api: AnchorAPI, run: Run, output: OutputFolder, *, only_failed: bool) -> None:
        self._api = api
        self._run = run
        self._output = output
        self._only_failed = only_failed
        self._pool = DaemonThreadPool(AT_ONCE, "recordings")
        self._changed = threading.Condition()
        self._asked_for: set[str] = set()  # nonces
        self._pending: set[str] = set()
        self._later: list[_Attempt] = []
        self._files: set[str] = set()  # that are being written
        self._thread: threading.Thread | None = None
        self._problems: list[str] = []
        self._answers: dict[str, str] = {}  # the last one that was of no use, by nonce
        self._is_over = False

    def fetch(self, records: Iterable[Record]) -> None:
        """Begin to download what is wanted of those sessions that are over."""
        for record in list(records):
            wanted = not self._only_failed or any(one.outcome in FAILED for one in record.tests.values())
            if record.state == "ended" and record.id is not None and wanted:
                with self._changed:
                    if record.nonce in self._asked_for:
                        continue
                    if self._thread is None:
                        thread = threading.Thread(target=self._work, name="recordings", daemon=True)
                        thread.start()
                        self._thread = thread
                    now = time.monotonic()
                    self._asked_for.add(record.nonce)
                    self._pending.add(record.nonce)
                    self._later.append(_Attempt(record, now, now + TIMEOUT))

    def wait(self, should_continue: Callable[[], bool]) -> None:
        """Wait for what is under way, and give up what does not come in time."""
        deadline = time.monotonic() + TIMEOUT
        with self._changed:
            while self._pending and should_continue() and time.monotonic() < deadline:
                self._changed.wait(0.25)
            self._is_over = True
            self._problems += [self._answers.get(nonce, "there was no time for it") for nonce in self._pending]
            self._pending.clear()
            for path in self._files:
                with suppress(OSError):
                    Path(path).unlink()
        self._pool.stop()

    def lines(self, folder: str) -> Iterator[tuple[str, bool]]:
        """What the summary says of them, and whether that is a trouble."""
        with self._changed:
            if self._asked_for:
                missing = len(self._problems)
                there = len(self._asked_for) - missing - len(self._pending)
                what = f"{len(self._asked_for)} recording{'s'[: len(self._asked_for) != 1]}"
                text = f"{there} of {what} kept in {printable(folder)}"
                yield (f"{text}; of the others: {printable(self._problems[-1])}" if missing else text), bool(missing)

    def _work(self) -> None:
        """Begin each attempt when it is due, as long as there are any."""
        while True:
            with self._changed:
                if self._is_over or not self._pending:
                    self._thread = None
                    return
                due = [one for one in self._later if one.due <= time.monotonic()]
                self._later = [one for one in self._later if one not in due]
            for one in due:
                self._pool.submit(partial(self._try, one))
            time.sleep(POLL_INTERVAL)

    def _try(self, attempt: _Attempt) -> None:
        record, problem = attempt.record, ""
        try:
            self._download(record, attempt.deadline)
        except AnchorAPIError as error:
            due = time.monotonic() + PAUSES[min(attempt.number, len(PAUSES) - 1)]
            with self._changed:
                if error.status is not None or record.nonce not in self._answers:  # the last words, and not silence
                    self._answers[record.nonce] = reason_without_id(error, record)
                problem = self._answers[record.nonce]
                if _may_come(error, attempt.number) and due < attempt.deadline:
                    self._later.append(attempt._replace(due=due, number=attempt.number + 1))
                    return
        except OSError as error:
            problem = error.strerror or str(error)
        with self._changed:
            if record.nonce in self._pending:
                self._pending.discard(record.nonce)
                self._problems += [problem] if problem else []
            self._changed.notify_all()

    def _download(self, record: Record, deadline: float) -> None:
        label = title(record)
        with self._output.new_file(label, "recording.mp4") as (file, path), self._writing(path):
            self._api.recording(str(record.id), file, deadline=deadline)
        with suppress(AnchorRegistryError):
            self._run.append("evidence", record.nonce, test=label, kind="recording", path=path)

    @contextmanager
    def _writing(self, path: str) -> Iterator[None]:
        """Have the file removed where the end of the run does not wait for it.

        :raises TimeoutError: it did not.
        """
        with self._changed:
            self._check_time()
            self._files.add(path)
        try:
            yield
        finally:
            with self._changed:
                self._files.discard(path)
                self._check_time()

    def _check_time(self) -> None:
        if self._is_over:
            raise TimeoutError("there was no time for it")


def _may_come(error: AnchorAPIError, attempts: int) -> bool:
    """Whether the recording may be there the next time."""
    if error.status is None or error.status >= 500:
        return attempts < MOST_FAILED
    return error.status in NOT_YET or is_transient_status(error.status)


def reason_without_id(error: AnchorAPIError, record: Record) -> str:
    """The error's reason; the API may have repeated the session's id in it, and the summary may not show that."""
    return error.reason.replace(str(record.id), "***")


def title(record: Record) -> str:
    """The tests that a recording shows, as one name."""
    tests = list(dict.fromkeys(one.test for one in record.tests.values())) or [record.test]
    return tests[0] if len(tests) == 1 else f"{tests[0]} and {len(tests) - 1} more"
