"""What other options would have made of a run: its tests are run again by simulation, on the times on record.

Pure: a picture in, estimates out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from heapq import heappop, heappush
from itertools import count, groupby, islice
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from .model import INEXACT, clip, union

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .model import Picture, TimedTest

PREFETCH = (1, 2, 4, 8)  # what is tried of --anchor-prefetch
MAX_WORKERS = 64  # that one machine is assumed to have room for
LEAST_SECONDS = 1.0  # that an estimate must save,
LEAST_PART = 0.03  # and of the run's time
WORTH_MORE = 1.1  # times what a smaller number saves: what a larger one must save
MARGIN = 0.05  # seconds between a window of the rate limit and the next
ADMISSION, DONE = -1.0, -2.0  # what a worker yields in the place of a moment

_Work = Generator[float, float, Any]


class Estimate(NamedTuple):
    """What a run with other options would have taken.

    :param options: as on the command line.
    :param seconds: how long the run would have taken.
    :param saved: by how much that is less than it took.
    :param why: the reason, in words.
    """

    options: str
    seconds: float
    saved: float
    why: str


class _Job(NamedTuple):
    """What one test asks of its worker and of the API, in seconds.

    :param gap: from the end of the test before.
    :param work: its own time, without what it waited for.
    :param slots: how many sessions it created.
    :param first: what creating the first of them took, and ``rest`` the others.
    :param end: what it took to end them at its teardown; they stay open where *is_shared*.
    :param is_shared: whether later tests have its sessions, too.
    :param borrows: whether it has a session that a test before it created.
    """

    gap: float
    work: float
    slots: int
    first: float
    rest: float
    end: float
    is_shared: bool
    borrows: bool


class _Options(NamedTuple):
    prefetch: int
    in_background: bool
    workers: int  # 0 for those on record, each with its tests


def estimates(picture: Picture) -> list[Estimate]:
    """What would have made the run faster, that which saves most first."""
    if picture.status == "running" or not picture.tests:
        return []
    simulation = _Simulation(picture)
    base = _Options(picture.prefetch, picture.end_in_background, 0)
    prefetches = [base._replace(prefetch=number) for number in PREFETCH if number > base.prefetch]
    ends = [] if base.in_background else [base._replace(in_background=True)]
    workers = [base._replace(workers=number) for number in _doubled(len(picture.lanes), _most_workers(picture))]
    room = f"the plan allows {picture.cap} sessions at once, and at most {picture.peak} were open"
    found = [
        (option, saved, why)
        for options, why in (
            (prefetches, "sessions are created while the test before runs"),
            (ends, "no test waits until its sessions are ended"),
            (workers, room),
        )
        if (best := simulation.best(base, options)) is not None
        for option, saved in [best]
    ]
    if len(found) > 1:
        together = _Options(*map(max, zip(*(option for option, _, _ in found), strict=True)))
        saved = simulation.saved(base, together)
        if saved > WORTH_MORE * max(one[1] for one in found):
            found.append((together, saved, "all of these"))
    return [
        Estimate(_in_words(base, option), round(picture.seconds - saved, 1), round(saved, 1), why)
        for option, saved, why in sorted(found, key=lambda one: -one[1])
    ]


def _in_words(base: _Options, option: _Options) -> str:
    words = [f"-n {option.workers}"] if option.workers else []
    if option.prefetch != base.prefetch:
        words.append(f"--anchor-prefetch {option.prefetch}")
    if option.in_background != base.in_background:
        words.append("--anchor-end background")
    return " ".join(words)


def _most_workers(picture: Picture) -> int:
    """How many workers the plan's cap has room for, and the tests use for."""
    for_each = -(-picture.peak // max(len(picture.lanes), 1))
    return min(picture.cap // for_each if for_each else 0, len(picture.tests) // 2, MAX_WORKERS)


def _doubled(number: int, at_most: int) -> Iterator[int]:
    while number < at_most:
        number = min(2 * number, at_most)
        yield number


class _Simulation:
    """The tests of a run, as often as asked for."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._lanes = [
            list(_jobs(picture, list(tests))) for _, tests in groupby(picture.tests, key=lambda test: test.lane)
        ]
        # In the order of their beginnings; what a worker needs until its first test, each further one needs, too.
        start = fmean(lane[0].gap for lane in self._lanes)
        jobs = [job._replace(gap=0.0 if job is lane[0] else job.gap) for lane in self._lanes for job in lane]
        order = sorted(range(len(jobs)), key=lambda number: picture.tests[number].began)
        self._queue = [jobs[number] for number in order]
        shared = [job.first for job in jobs if job.is_shared]
        self._start, self._shared_create = start, fmean(shared) if shared else 0.0
        self._seconds: dict[_Options, float | None] = {}

    def saved(self, base: _Options, other: _Options) -> float:
        """By how many seconds the run is shorter with *other* options; 0 where that cannot be computed."""
        if other.workers:  # against as many as there were, for which the tests are dealt out in the same way
            base = base._replace(workers=len(self._lanes))
        if (before := self._run(base)) is None or (after := self._run(other)) is None:
            return 0.0
        return before - after

    def best(self, base: _Options, others: list[_Options]) -> tuple[_Options, float] | None:
        """The option up to which each of *others* saves enough more than the one before it, and what it saves.

        :param others: in ascending order.
        """
        best, most = None, max(LEAST_SECONDS, LEAST_PART * self._picture.seconds)
        for other in others:
            if (saved := self.saved(base, other)) < most:
                break
            best, most = (other, saved), WORTH_MORE * saved
        return best

    def _run(self, options: _Options) -> float | None:
        if options not in self._seconds:
            limits = _Limits(self._picture.cap, self._picture.quota, self._picture.window)
            queues = [deque(self._queue)] * options.workers or [deque(lane) for lane in self._lanes]
            start = self._start if options.workers else 0.0
            workers = [_Worker(queue, limits, options, self._shared_create).work(start) for queue in queues]
            self._seconds[options] = limits.run(workers)
        return self._seconds[options]


def _jobs(picture: Picture, tests: list[TimedTest]) -> Iterator[_Job]:
    before = 0.0
    for test in tests:
        within = test.began, test.ended
        had = [picture.sessions[number] for number in test.sessions]
        # What it did not create itself, a test before it did, or it was created ahead of it.
        since = test.began - INEXACT
        mine = [one for one in had if one.test == test.test and (one.ahead or since <= one.begun <= test.ended)]
        spans = [(one.begun, one.answered) for one in mine]
        ends = [one.end_span for one in mine if one.end_span and one.ended_by == "teardown"]
        blocked = [clip((one.asked, one.answered), within) for one in mine if not one.ahead]
        inline = [] if picture.end_in_background else [clip(span, within) for span in ends]
        waited = union(blocked + inline) + sum(one.waited for one in mine)
        first = spans[0][1] - spans[0][0] if spans else 0.0
        yield _Job(
            gap=max(test.began - before, 0.0),
            work=max(test.ended - test.began - waited, 0.0),
            slots=len(mine),
            first=first,
            rest=max(union(spans) - first, 0.0) if len(spans) > 1 else 0.0,
            end=union(ends),
            is_shared=any(len(one.tests) > 1 for one in mine),
            borrows=len(mine) < len(had),
        )
        before = test.ended


class _Limits:
    """What the plan allows, and the clock of the simulation."""

    def __init__(self, cap: int, quota: int, window: float) -> None:
        self._free = float(cap or "inf")
        self._quota, self._window = quota, window
        self._starts: deque[float] = deque(maxlen=quota or 1)
        self._waiting: deque[_Work] = deque()
        self._events: list[tuple[float, int, _Work | None, int]] = []  # with the slots that are freed
        self._woken = 0.0  # when those that wait for the rate limit are looked at again
        self._number = count()

    def run(self, workers: Iterable[_Work]) -> float | None:
        """Run all workers, and return when the last of them is done; ``None`` where they wait for each other."""
        for one in workers:
            self._resume(one, next(one))
        done = 0.0
        while self._events:
            now, _, worker, freed = heappop(self._events)
            if worker is None:
                self._free += freed
            else:
                done = now
                self._resume(worker, worker.send(now))
            self._serve(now)
        return None if self._waiting else done

    def release(self, moment: float, slots: int) -> None:
        """Free slots at a *moment* that is not past."""
        self._at(moment, None, slots)

    def try_ahead(self, now: float) -> bool:
        """Begin a creation that no test waits for, if that is allowed: half of a window is left to the tests' own."""
        if self._waiting or self._free < 1:
            return False
        if self._quota and sum(start > now - self._window for start in self._starts) >= self._quota // 2:
            return False
        self._begin(now)
        return True

    def _resume(self, worker: _Work, moment: float) -> None:
        if moment == ADMISSION:
            self._waiting.append(worker)
        elif moment != DONE:
            self._at(moment, worker, 0)

    def _at(self, moment: float, worker: _Work | None, freed: int) -> None:
        heappush(self._events, (moment, next(self._number), worker, freed))

    def _begin(self, now: float) -> None:
        self._free -= 1
        self._starts.append(now)

    def _serve(self, now: float) -> None:
        while self._waiting and self._free >= 1:
            if self._quota and len(self._starts) == self._quota:
                allowed = self._starts[0] + self._window + MARGIN
                if allowed > now:
                    if self._woken < allowed:
                        self._woken = allowed
                        self._at(allowed, None, 0)
                    return
            self._begin(now)
            self._at(now, self._waiting.popleft(), 0)


class _Worker:
    """One process of the run.

    :param queue: its tests, or those that all workers take from.
    :param shared_create: seconds that it takes to create a session that several tests share.
    """

    def __init__(self, queue: deque[_Job], limits: _Limits, options: _Options, shared_create: float) -> None:
        self._queue = queue
        self._limits = limits
        self._options = options
        self._shared_create = shared_create
        self._shared = 0  # slots
        self._ahead: deque[float] = deque()  # when what is created ahead is there

    def work(self, start: float = 0.0) -> _Work:
        """Run tests until there are none: yields when it goes on, and is sent the time.

        It yields ADMISSION in order to create a session, and DONE at last.
        """
        now = yield start
        while self._queue:
            job = self._queue.popleft()
            now = yield now + job.gap
            if job.borrows and not self._shared:
                now = yield ADMISSION
                now = yield now + self._shared_create
                self._shared = 1
            now = yield from self._create(job, now)
            now = yield now + job.work
            if job.is_shared:
                self._limits.release(now, self._shared)
                self._shared = job.slots
            else:
                self._limits.release(now + job.end, job.slots)
                if not self._options.in_background:
                    now = yield now + job.end
        yield DONE

    def _create(self, job: _Job, now: float) -> _Work:
        if not job.slots:
            return now
        others = job.slots - 1
        if self._ahead and not job.is_shared:
            ready = self._ahead.popleft()
            self._create_ahead(now)
            now = yield max(now, ready)
        else:
            now = yield ADMISSION
            now = yield now + job.first
            self._create_ahead(now)
        for _ in range(others):
            now = yield ADMISSION
        return (yield now + job.rest)

    def _create_ahead(self, now: float) -> None:
        wanted = (job for job in self._queue if job.slots and not job.is_shared)
        for job in islice(wanted, len(self._ahead), self._options.prefetch):
            if not self._limits.try_ahead(now):
                return
            self._ahead.append(now + job.first)
