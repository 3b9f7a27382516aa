import os
import signal
import threading
import time
from functools import partial

import pytest

from pytest_anchor.background import DaemonThreadPool

NAME = "pool-under-test"


def threads():
    return sum(thread.name == NAME for thread in threading.enumerate())


@pytest.fixture
def gate():
    event = threading.Event()
    yield event
    event.set()


def test_calls_are_done_side_by_side_at_most_as_many_as_asked_for(until):
    pool, lock, busy, most, done = DaemonThreadPool(4, NAME), threading.Lock(), 0, 0, []

    def call(n):
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.005)
        with lock:
            busy -= 1
            done.append(n)

    for n in range(40):
        pool.submit(partial(call, n))
    assert pool.wait(30)
    assert sorted(done) == list(range(40))
    assert most == 4
    until(lambda: threads() == 0)


def test_one_thread_keeps_the_order(gate):
    pool, done = DaemonThreadPool(1, NAME), []
    pool.submit(gate.wait)
    for n in range(2000):
        pool.submit(partial(done.append, n))
    gate.set()
    assert pool.wait(30)
    assert done == list(range(2000))


def test_threads_are_daemons_and_go(until):
    pool, seen = DaemonThreadPool(3, NAME), []
    for _ in range(2):
        pool.submit(lambda: seen.append(threading.current_thread()))
        assert pool.wait(30)
        until(lambda: threads() == 0)
    assert all(thread.daemon for thread in seen)
    assert len(seen) == 2


@pytest.mark.parametrize("kind", [ValueError, RecursionError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_a_call_raises_costs_nothing(kind, capfd):
    pool, done = DaemonThreadPool(2, NAME), []

    def bad():
        raise kind

    for n in range(20):
        pool.submit(bad)
        pool.submit(partial(done.append, n))
    assert pool.wait(30)
    assert sorted(done) == list(range(20))
    assert capfd.readouterr() == ("", "")


def test_waiting_has_an_end(gate):
    pool = DaemonThreadPool(1, NAME)
    assert pool.wait(0)
    pool.submit(gate.wait)
    before = time.monotonic()
    assert not pool.wait(0.1)
    assert not pool.wait(-1)
    assert 0.1 <= time.monotonic() - before < 5
    gate.set()
    assert pool.wait(30)


def test_what_has_not_begun_when_it_stops_is_forgotten(gate, until):
    pool, done = DaemonThreadPool(2, NAME), []
    for _ in range(2):
        pool.submit(gate.wait)
    until(lambda: threads() == 2)
    for n in range(10):
        pool.submit(partial(done.append, n))
    pool.stop()
    pool.submit(partial(done.append, 10))
    assert not pool.wait(0.01)
    gate.set()
    assert pool.wait(30)
    assert done == []


def test_calls_may_submit():
    pool, done = DaemonThreadPool(2, NAME), []

    def call(n):
        done.append(n)
        if n:
            pool.submit(partial(call, n - 1))

    pool.submit(partial(call, 500))
    assert pool.wait(30)
    assert done == list(range(500, -1, -1))


def test_many_may_submit_at_once():
    pool, done = DaemonThreadPool(3, NAME), []
    submitters = [
        threading.Thread(target=lambda: [pool.submit(partial(done.append, 1)) for _ in range(500)]) for _ in range(8)
    ]
    for thread in submitters:
        thread.start()
    for thread in submitters:
        thread.join()
    assert pool.wait(30)
    assert len(done) == 4000


def limit_threads(monkeypatch, left):
    """As on a system that starts *left* more threads, and no further one."""
    start = threading.Thread.start

    def start_or_fail(thread):
        nonlocal left
        if not left:
            raise RuntimeError("can't start new thread")
        left -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_fail)


def test_without_threads_the_caller_does_the_work(monkeypatch):
    limit_threads(monkeypatch, 0)
    pool, done = DaemonThreadPool(3, NAME), []
    pool.submit(lambda: 1 / 0)
    for _ in range(3):
        pool.submit(lambda: done.append(threading.current_thread()))
    assert done == [threading.current_thread()] * 3
    assert pool.wait(0)


def test_without_a_further_thread_the_first_does_the_work(monkeypatch, gate):
    limit_threads(monkeypatch, 1)
    pool, done = DaemonThreadPool(3, NAME), []
    pool.submit(gate.wait)
    for _ in range(3):
        pool.submit(lambda: done.append(threading.current_thread().name))
    assert done == []
    gate.set()
    assert pool.wait(30)
    assert done == [NAME] * 3


def test_ctrl_c_in_work_that_the_caller_does_gets_through(monkeypatch):
    pool, done = DaemonThreadPool(2, NAME), []
    with monkeypatch.context() as system, pytest.raises(KeyboardInterrupt):
        limit_threads(system, 0)
        pool.submit(partial(signal.raise_signal, signal.SIGINT))
    pool.submit(partial(done.append, 1))
    assert pool.wait(30)
    assert done == [1]


def test_ctrl_c_gets_through_a_wait(gate):
    pool = DaemonThreadPool(1, NAME)
    pool.submit(gate.wait)
    timer = threading.Timer(0.1, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    timer.start()
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pool.wait(30)
    assert time.monotonic() - before < 20
    timer.join()
    gate.set()
    assert pool.wait(30)


def test_a_forked_child_begins_with_nothing(gate):
    pool, done = DaemonThreadPool(1, NAME), []
    pool.submit(gate.wait)
    pool.submit(partial(done.append, 1))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            idle = pool.wait(0)
            pool.submit(partial(done.append, 2))
            status = 0 if idle and pool.wait(10) and done == [2] else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    gate.set()
    assert pool.wait(30)
    assert done == [1]
