import json
import multiprocessing
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import fault_server as fs
import pytest

from pytest_anchor import limits as limits_module
from pytest_anchor import session as session_module
from pytest_anchor.errors import AnchorAPIError, AnchorLimitError, Limit
from pytest_anchor.limits import BACKOFF, MARGIN, Limits, account_of, plan_cap, waits_in
from pytest_anchor.registry import Run
from pytest_anchor.session import AnchorSessionFactory, Owner

BUSY = 10.0  # seconds by which a machine with much to do may be late


class Registry:
    """Owners of one registry, with their locks held."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: list[Run] = []

    def owner(self, name: str = "main", run: str = "inv", cap: int = 0, timeout: float = 30.0) -> Limits:
        one = Run(self.folder / run, name)
        one.join()
        self.runs.append(one)
        return Limits(self.folder, one.folder, name, account="a", base_url="http://b", cap=cap, timeout=timeout)

    @property
    def file(self) -> Path:
        return self.folder / "limits-a.json"

    @property
    def state(self) -> dict:
        return json.loads(self.file.read_text().partition("\n")[0])


@pytest.fixture
def registry(tmp_path):
    registry = Registry(tmp_path / ".pytest_anchor")
    yield registry
    for run in registry.runs:
        run.leave()


def begin(limits: Limits, nonce: str = "n", *, stuck: bool = False, test: str = "t.py::x") -> limits_module.Waiting:
    waiting = limits.waiting(test, lambda _text: None)
    waiting.begin(nonce, stuck=lambda: stuck, meanwhile=lambda: None)
    return waiting


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + BUSY
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


# the rate


def test_a_429_pauses_every_owner_until_the_time_it_tells(registry):
    one, other = registry.owner("gw0"), registry.owner("gw1")
    first = begin(one)
    one.met("n", first.began, Limit(1.0, None, None))
    start = time.time()
    waits = [in_background(lambda limits=limits: begin(limits)) for limits in (one, other)]
    time.sleep(0.8)
    assert all(wait.is_alive() for wait in waits)
    for wait in waits:
        wait.join(BUSY)
    assert 1.0 <= registry.state["until"] - start + 0.1 <= 1.0 + 0.1 + 0.2, "with jitter, but little"


def test_a_policy_paces_what_comes_after(registry):
    owners = [registry.owner(f"gw{n}") for n in range(3)]
    first = begin(owners[0])
    owners[0].met("n", first.began, Limit(0.2, 3, 0.5))
    began = []

    def create_four(limits):
        began.extend([begin(limits).began for _ in range(4)])

    threads = [in_background(lambda limits=limits: create_four(limits)) for limits in owners]
    for thread in threads:
        thread.join(BUSY + 5)
    began.sort()
    assert len(began) == 12
    assert all(later - sooner >= 0.5 for sooner, later in zip(began, began[3:], strict=False))
    assert began[-1] - began[0] < 3 * (0.5 + MARGIN) + BUSY


def test_a_refused_creation_uses_nothing_up(registry):
    limits = registry.owner()
    for _ in range(2):
        limits.met("n", begin(limits).began, Limit(0.0, 1, 60.0))
        time.sleep(limits._memory.until - time.time())
    assert registry.state["starts"] == []


@pytest.mark.parametrize("told", [0.0, None])
def test_who_is_told_no_time_waits_longer_each_time(registry, monkeypatch, told):
    limits = registry.owner(timeout=100)
    now = 1_000_000.0
    monkeypatch.setattr(limits_module.time, "time", lambda: now)
    waits = []
    for _ in range(9):
        limits.met("n", 0.0, Limit(told, None, None))
        waits.append(registry.state["until"] - now)
        now += waits[-1]
    for number, wait in enumerate(waits):
        least = min(BACKOFF * 2**number, limits_module.MAX_BACKOFF)
        assert least <= wait <= least * 1.1 + 1e-3
    limits.succeeded()
    assert registry.state["misses"] == 0


def test_answers_to_what_was_under_way_at_the_first_429_are_no_news(registry):
    limits = registry.owner()
    for _ in range(16):
        limits.met("n", 0.0, Limit(None, None, None))
    assert registry.state["until"] - time.time() < 2 * BACKOFF


def test_a_policy_without_a_time_is_waited_for_as_a_window(registry):
    limits = registry.owner(timeout=100)
    limits.met("n", 0.0, Limit(None, 5, 60.0))
    assert 59 < registry.state["until"] - time.time() < 62


def test_a_429_that_tells_nothing_is_no_matter_of_a_window_known_before(registry):
    limits = registry.owner(timeout=100)
    limits.met("n", 0.0, Limit(0.0, 5, 60.0))
    time.sleep(max(0.0, registry.state["until"] - time.time()) + 0.01)
    limits.met("n", 0.0, Limit(None, None, None))
    assert registry.state["until"] - time.time() < 10


@pytest.mark.parametrize("window", [7200, 86400])
def test_a_window_of_hours_is_no_reason_to_ask_again_and_again(server, settings, window):
    owner = Owner(settings._replace(create_timeout=2.0))
    server.fail_always("POST", fs.status(429, RateLimit_Policy=f"q=100;w={window}"))
    with pytest.raises(AnchorLimitError, match=f"100 creations in {window} s"):
        owner.create({}, "t")
    assert server.count("POST") == 1
    owner.close()


def test_waiting_that_would_take_too_long_is_refused_at_once(registry):
    limits = registry.owner(timeout=5)
    limits.met("n", 0.0, Limit(60.0, 5, 60.0))
    start = time.monotonic()
    with pytest.raises(AnchorLimitError) as caught:
        begin(limits)
    assert time.monotonic() - start < 4
    assert "t.py::x" in str(caught.value)
    assert "the API allows 5 creations in 60 s" in str(caught.value)
    assert "--anchor-create-timeout" in str(caught.value)
    assert registry.state["queue"] == []


def test_what_is_told_is_believed_for_an_hour(registry, monkeypatch):
    limits = registry.owner()
    limits.met("n", 0.0, Limit(0.1, 1, 3000.0))
    later = time.time() + limits_module.KNOWN_FOR
    monkeypatch.setattr(limits_module.time, "time", lambda: later)
    begin(limits), begin(limits)


@pytest.mark.parametrize("change", [-7200, -1800, -5, 7200])
def test_a_clock_that_jumps_holds_nobody(registry, change):
    limits = registry.owner(timeout=20)
    begin(limits)
    limits.met("n", 0.0, Limit(15.0, 1, 15.0))
    state = registry.state
    for name in ("until", "set_at", "learned"):
        state[name] -= change
    state["starts"] = [one - change for one in state["starts"]]
    registry.file.write_text(json.dumps(state))
    start = time.monotonic()
    begin(limits)
    assert time.monotonic() - start < BUSY


@pytest.mark.parametrize("change", [3600, -3600])
def test_a_clock_that_jumps_while_some_wait_holds_nobody(registry, monkeypatch, change):
    limits, clock, offset = registry.owner(timeout=30), time.time, [0.0]
    monkeypatch.setattr(limits_module.time, "time", lambda: clock() + offset[0])
    limits.met("n", 0.0, Limit(20.0, 5, 20.0))
    threads = [in_background(lambda: begin(limits)) for _ in range(4)]
    wait_for(lambda: len(registry.state["queue"]) == 4)
    offset[0] = change
    for thread in threads:
        thread.join(BUSY)
        assert not thread.is_alive()


def test_who_waits_as_the_file_begins_anew_stays_before_those_who_come_later(registry):
    limits, now = registry.owner(), time.time()
    sooner, later = (limits.waiting("t", lambda _text: None) for _ in range(2))
    sooner.place(limits_module._State(last=5), "inv", "main", now)
    anew = limits_module._State()
    assert sooner.place(anew, "inv", "main", now).number < later.place(anew, "inv", "main", now).number


def test_a_killed_waiter_delays_nobody(registry, monkeypatch):
    monkeypatch.setattr(limits_module, "LATE", 1.0)
    limits = registry.owner(timeout=30)
    limits.met("n", 0.0, Limit(2.0, 1, 60.0))
    process = multiprocessing.get_context("fork").Process(target=lambda: begin(registry.owner("gw7")))
    process.start()
    wait_for(lambda: registry.state["queue"])
    process.kill()
    process.join()
    begun = begin(limits).began
    assert begun - registry.state["until"] < 2 + BUSY / 2


# the cap


def test_first_asked_first_served_over_all_owners(registry):
    owners = [registry.owner(f"gw{n}", run=f"inv{n % 2}", cap=1) for n in range(4)]
    begin(owners[0], "n0")
    order = []

    def wait(number):
        begin(owners[number], f"n{number}")
        order.append(number)

    threads = []
    for number in (2, 1, 3):
        threads.append(in_background(lambda number=number: wait(number)))
        wait_for(lambda: len(registry.state["queue"]) == len(threads))
    for number in (0, 2, 1):
        before = len(order)
        owners[number].let_go([f"n{number}"])
        wait_for(lambda before=before: len(order) > before)
    assert order == [2, 1, 3]


def test_who_has_a_smaller_cap_of_his_own_does_not_hold_up_the_others(registry):
    small, large = registry.owner("gw0", cap=1), registry.owner("gw1", cap=2)
    begin(small, "n0")
    waiter = in_background(lambda: begin(small, "n1"))
    wait_for(lambda: registry.state["queue"])
    begin(large, "n2")
    small.let_go(["n0"])
    large.let_go(["n2"])
    waiter.join(BUSY)
    assert not waiter.is_alive()


def test_the_slots_of_the_dead_are_free_when_their_sessions_are_over(registry):
    limits = registry.owner("main", cap=2, timeout=0.3)
    dead = registry.owner("gw0", cap=2)
    run = registry.runs[-1]
    values = {"owner": "gw0", "test": "t", "time": 1.0, "base_url": "u", "fingerprint": "f", "run_id": "r", "place": 1}
    for nonce in ("inv-a", "inv-b"):
        begin(dead, nonce)
        run.append("intent", nonce, **values)
        run.append("created", nonce, id=nonce, seal="s")
    with pytest.raises(AnchorLimitError):
        begin(limits)
    run.leave()
    with pytest.raises(AnchorLimitError, match=r"2 by this run \[gw0\], which is over; its run tries to end"):
        begin(limits)
    run.append("ended", "inv-a", how="sweep", already=False)
    begin(limits)


def test_the_slots_of_a_run_that_is_gone_are_free(registry):
    limits, folder = registry.owner("main", cap=1, timeout=0.3), re.escape(str(registry.folder))
    begin(registry.owner("main", run="other", cap=1))
    run = registry.runs[-1]
    run.append("intent", "n", owner="main", test="", time=1, base_url="", fingerprint="", run_id="", place=1)
    run.append("created", "n", id="x", seal="s")
    run.leave()
    with pytest.raises(
        AnchorLimitError,
        match=rf"another run \[main\], which died: python -m pytest_anchor sweep --base-url http://b --registry {folder} ends",
    ):
        begin(limits)
    run.remove()
    begin(limits)


def test_a_test_that_holds_all_it_waits_for_is_told_at_once(registry):
    limits = registry.owner(cap=2)
    begin(limits, "a"), begin(limits, "b")
    start = time.monotonic()
    with pytest.raises(AnchorLimitError, match="itself, or a fixture around it, holds all 2 of them"):
        begin(limits, "c", stuck=True)
    assert time.monotonic() - start < BUSY


def test_tests_that_wait_for_each_other_are_told_and_one_gives_way(registry):
    owners = [registry.owner(f"gw{n}", cap=2, timeout=20) for n in range(2)]
    outcomes = {}

    def hold_and_want(number):
        try:
            begin(owners[number], f"b{number}", stuck=True, test=f"test_{number}")
            outcomes[number] = ""
        except AnchorLimitError as error:
            outcomes[number] = str(error)
            owners[number].let_go([f"a{number}"])

    for number, limits in enumerate(owners):
        begin(limits, f"a{number}")
    threads = [in_background(lambda number=number: hold_and_want(number)) for number in range(2)]
    for thread in threads:
        thread.join(BUSY)
    assert sorted(map(bool, outcomes.values())) == [False, True]
    told = "".join(outcomes.values())
    assert "test_0 [gw0] holds 1, test_1 [gw1] holds 1" in told or "test_1 [gw1] holds 1, test_0 [gw0]" in told


def test_a_test_that_holds_the_only_one_reads_so(registry):
    limits = registry.owner(cap=1)
    begin(limits, "a")
    with pytest.raises(
        AnchorLimitError, match="it would have to wait .* holds the only one, and would wait for itself"
    ):
        begin(limits, "b", stuck=True)


def test_processes_that_a_test_forks_wait_for_each_other_and_for_the_test(registry):
    limits = registry.owner(cap=1)

    def hold(nonce, seconds):
        begin(limits, nonce, stuck=True)
        time.sleep(seconds)
        limits.let_go([nonce])

    fork = multiprocessing.get_context("fork").Process
    begin(limits, "own")
    children = [fork(target=hold, args=(f"n{number}", 0.3)) for number in range(2)]
    for child in children:
        child.start()
    wait_for(lambda: len(registry.state["queue"]) == 2)
    time.sleep(0.3)
    limits.let_go(["own"])
    hold("later", 0)
    for child in children:
        child.join(BUSY)
        assert child.exitcode == 0


def test_processes_that_share_a_cap_lose_nothing(registry):
    fork = multiprocessing.get_context("fork")
    owners = [registry.owner(f"gw{number}", cap=3, timeout=120) for number in range(8)]
    live, most = fork.Value("i", 0), fork.Value("i", 0)

    def create_ten(limits, name):
        for number in range(10):
            begin(limits, f"{name}-{number}")
            with live.get_lock():
                live.value += 1
                most.value = max(most.value, live.value)
            time.sleep(0.005)
            with live.get_lock():
                live.value -= 1
            limits.let_go([f"{name}-{number}"])

    children = [fork.Process(target=create_ten, args=(limits, f"n{n}")) for n, limits in enumerate(owners)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert 1 < most.value <= 3
    assert (registry.state["slots"], registry.state["queue"], registry.state["last"]) == ({}, [], 80)


def test_what_is_on_its_way_to_its_end_is_waited_for(registry):
    limits = registry.owner(cap=1)
    begin(limits, "a")
    limits.use(["a"], "ending")
    waiter = in_background(lambda: begin(limits, "b", stuck=True))
    time.sleep(0.5)
    assert waiter.is_alive()
    limits.let_go(["a"])
    waiter.join(BUSY)
    assert not waiter.is_alive()


def test_the_error_says_who_holds_what(registry):
    limits, other = registry.owner("gw0", cap=3, timeout=0.3), registry.owner("gw1", cap=3)
    begin(limits, "a"), begin(other, "b"), begin(other, "c")
    other.use(["c"], "ending")
    with pytest.raises(AnchorLimitError) as caught:
        begin(limits, "d")
    assert "3 of at most 3 are open" in str(caught.value)
    assert "1 by this run [gw0]; 1 by this run [gw1]; 1 by this run [gw1], which could not be ended" in str(
        caught.value
    )


def test_what_nobody_waits_for_begins_only_where_it_is_in_nobodys_way(registry):
    limits = registry.owner(cap=2)
    assert limits.begin_now("a") is not None
    begin(limits, "b")
    assert limits.begin_now("c") is None
    limits.let_go(["a"])
    limits.met("x", 0.0, Limit(30.0, None, None))
    assert limits.begin_now("c") is None


@pytest.mark.parametrize(("quota", "ahead"), [(1, 0), (2, 1), (5, 2)])
def test_half_of_what_a_window_allows_is_left_to_those_that_somebody_waits_for(registry, quota, ahead):
    limits = registry.owner()
    limits.met("x", 0.0, Limit(0.0, quota, 600.0))
    wait_for(lambda: registry.state["until"] < time.time())
    begun = [limits.begin_now(f"a{n}") for n in range(quota)]
    assert [one is not None for one in begun] == [True] * ahead + [False] * (quota - ahead)
    for n in range(quota - ahead):
        begin(limits, f"b{n}")


# the file


ODD = [
    b"",
    b"null",
    b"[]",
    b"{",
    b"[" * 100_000,
    b"\xff\xfe",
    b"{}",
    b'{"held": 5}',
    b'{"queue": [], "slots": []}',
    b'{"queue": {}, "slots": {"a": null}}',
    b'{"queue": [], "slots": {"a": []}}',
    b'{"queue": [], "slots": {"a": ["../x", "main", ""]}}',
    b'{"queue": [], "slots": {"a": ["x\\u0000", "main", ""]}}',
    b'{"queue": [], "slots": {"a": ["inv", "main", "?"]}}',
    b'{"queue": [], "slots": {"\\ud800": ["inv", "main", ""]}}',
    b'{"queue": [null], "slots": {}}',
    b'{"queue": [{"number": 1}], "slots": {}}',
    b'{"queue": [], "slots": {}, "quota": "5"}',
    b'{"queue": [], "slots": {}, "quota": -5, "learned": %d, "window": 60}',
    b'{"queue": [], "slots": {}, "quota": 2.5, "learned": %d, "window": 60}',
    b'{"queue": [], "slots": {}, "quota": 1, "learned": %d, "window": 1e12, "starts": [%d]}',
    b'{"queue": [], "slots": {}, "until": 1e12, "set_at": %d}',
    b'{"queue": [], "slots": {}, "until": NaN}',
    b'{"queue": [], "slots": {}, "until": Infinity}',
    b'{"queue": [], "slots": {}, "starts": [true]}',
    b'{"queue": [], "slots": {}, "starts": 5}',
    b'{"queue": [], "slots": {}, "last": "x"}',
    b'{"queue": [], "slots": {}, "strange": 1}',
]


@pytest.mark.parametrize("number", range(len(ODD)))
def test_a_file_that_is_odd_limits_nothing(registry, number):
    text = ODD[number].replace(b"%d", str(int(time.time())).encode())
    limits = registry.owner(cap=5, timeout=2)
    registry.file.write_bytes(text)
    assert waits_in(registry.folder / "inv") == []
    assert not limits.is_crowded()
    limits.holders()
    limits.let_go(["x"])
    registry.file.write_bytes(text)
    begin(limits)
    limits.met("n", 0.0, Limit(0.0, 5, 1.0))
    assert limits._saved


@pytest.mark.parametrize("what", ["fifo", "link", "folder", "device"])
def test_what_is_no_file_is_neither_followed_nor_waited_for(registry, tmp_path, what):
    limits = registry.owner(cap=5, timeout=5)
    target = tmp_path / "target"
    target.write_text("precious")
    if what == "fifo":
        os.mkfifo(registry.file)
    elif what == "folder":
        registry.file.mkdir()
    else:
        registry.file.symlink_to(target if what == "link" else "/dev/zero")
    begin(limits)
    limits.met("n", 0.0, Limit(0.0, None, None))
    assert waits_in(registry.folder / "inv") == []
    assert target.read_text() == "precious"


@pytest.mark.parametrize("how", ["folder", "full"])
def test_what_was_learned_holds_though_it_cannot_be_written(registry, how):
    limits = registry.owner(cap=1, timeout=20)
    with ExitStack() as stack:
        if how == "folder":
            registry.file.mkdir()
        else:
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            # Before pytest reports on the test: its own output may go to a file.
            stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # Python ignores the signal that comes with it
        begin(limits, "a")
        limits.met("b", 0.0, Limit(1.0, None, None))
        limits.let_go(["a"])
        start = time.monotonic()
        begin(limits, "a")
        assert time.monotonic() - start > 0.8
        with pytest.raises(AnchorLimitError, match="itself"):
            begin(limits, "c", stuck=True)


def test_who_could_not_write_for_a_while_takes_his_own_slots_back_and_leaves_the_others(registry):
    limits, other = registry.owner("gw0", cap=5), registry.owner("gw1", cap=5)
    begin(limits, "a"), begin(other, "b")
    hidden = registry.file.rename(registry.file.with_suffix(".hidden"))
    registry.file.mkdir()
    begin(limits, "c")
    limits.let_go(["a"])
    limits.met("x", 0.0, Limit(20.0, 5, 60.0))
    registry.file.rmdir()
    hidden.rename(registry.file)
    begin(other, "d")
    limits.let_go([])
    limits.use(["c"], "ending")
    assert {nonce: slot[2] for nonce, slot in registry.state["slots"].items()} == {"b": "", "c": "ending", "d": ""}
    assert registry.state["quota"] == 5
    assert registry.state["until"] > time.time() + 10


def test_who_cannot_read_the_file_does_not_wait_for_others_for_ever(registry):
    limits, other = registry.owner("gw0", cap=2), registry.owner("gw1", cap=2)
    begin(limits, "a"), begin(other, "b")
    waiter = in_background(lambda: begin(limits, "c"))
    wait_for(lambda: registry.state["queue"])
    registry.file.unlink()
    registry.file.mkdir()
    waiter.join(BUSY)
    assert not waiter.is_alive()
    with pytest.raises(AnchorLimitError, match="itself"):
        begin(limits, "d", stuck=True)


def test_a_lock_that_is_never_free_is_waited_for_once(registry, monkeypatch):
    monkeypatch.setattr(limits_module, "LOCK_TIMEOUT", 0.5)
    limits = registry.owner(cap=5)
    limits._patience = 0.5
    with limits_module.guarded(registry.file, 1.0):
        start = time.monotonic()
        for number in range(20):
            begin(limits, f"n{number % 5}")
            limits.let_go([f"n{number % 5}"])
        assert time.monotonic() - start < 0.5 + BUSY


def test_a_forked_child_waits_for_no_thread_of_its_parent(registry):
    limits, changing, go = registry.owner(cap=5), threading.Event(), threading.Event()

    def change():
        with limits._changing():
            changing.set()
            go.wait(BUSY)

    thread = in_background(change)
    assert changing.wait(BUSY)
    limits._patience = 0.1  # for the file's own lock
    if not (child := os.fork()):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the limit of a test's time has a handler for it
        signal.alarm(5)
        begin(limits)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    go.set()
    thread.join()


def test_an_interruption_as_a_change_begins_locks_nobody_out(registry):
    limits = registry.owner(cap=5)
    cut_off = limits._changing()
    cut_off.__enter__()  # an exception just here makes `with` forget it
    limits._patience = 0.1
    limits.leave("ticket", "n")
    del cut_off
    in_background(lambda: begin(limits, "a")).join(BUSY)
    assert list(registry.state["slots"]) == ["a"]


def test_a_creation_that_is_interrupted_as_it_begins_holds_nothing(registry, monkeypatch):
    limits = registry.owner(cap=1)
    look = limits.look

    def look_and_fail(*args, **kwargs):
        assert look(*args, **kwargs).wait is None
        raise KeyboardInterrupt

    monkeypatch.setattr(limits, "look", look_and_fail)
    with pytest.raises(KeyboardInterrupt):
        begin(limits)
    assert (registry.state["slots"], registry.state["queue"]) == ({}, [])


def test_nothing_of_the_file_reaches_a_terminal_raw(registry):
    red, green = registry.owner("gw0", cap=1), registry.owner("gw1", cap=1, timeout=0.2)
    begin(red, "a")
    waiter = in_background(lambda: begin(red, "b", test="\x1b[31mred"))
    wait_for(lambda: registry.state["queue"])
    with pytest.raises(AnchorLimitError) as caught:
        begin(green, "c", test="\x1b[32mgreen")
    red.let_go(["a"])
    waiter.join(BUSY)
    assert "\x1b" not in str(caught.value)


# how a suite's creations meet it


@pytest.fixture
def patient(settings):
    owner = Owner(settings._replace(create_timeout=20.0))
    yield owner
    owner.close()


def test_a_creation_that_meets_a_429_waits_and_succeeds(server, patient):
    server.fail("POST", fs.status(429, Retry_After="1"), fs.status(429))
    session = AnchorSessionFactory(patient, {}, lambda: "t")()
    assert server.alive == [session.id]
    assert server.count("POST") == 3
    assert server.times[1] - server.times[0] > 0.95
    state = patient.join().read()
    assert sorted(one.state for one in state.records.values()) == ["open", "refused", "refused"]
    assert 1.0 < sum(state.waits.values()) < 1.0 + BUSY


def test_an_api_that_goes_on_with_429_is_not_hammered_and_given_up_in_time(server, settings):
    owner = Owner(settings._replace(create_timeout=3.0))
    server.fail_always("POST", fs.status(429))
    with pytest.raises(AnchorLimitError, match="--anchor-create-timeout"):
        owner.create({}, "t")
    assert 2 <= server.count("POST") <= 4
    owner.close()


def test_the_same_where_the_limits_cannot_be_written(server, settings):
    owner = Owner(settings._replace(create_timeout=3.0))
    account = account_of(owner.open()[1])
    (settings.folder.parent / f"limits-{account}.json").mkdir()
    server.fail_always("POST", fs.status(429))
    with pytest.raises(AnchorLimitError):
        owner.create({}, "t")
    assert 2 <= server.count("POST") <= 4
    owner.close()


def test_the_plan_is_asked_for_once_in_a_run(server, settings):
    server.cap = 7
    owners = [Owner(settings._replace(owner=name)) for name in ("gw0", "gw1", "gw2")]
    for owner in owners:
        owner.create({}, "t")
    assert {owner.limits.cap for owner in owners} == {7}
    assert server.asked_for_cap == 1
    for owner in owners:
        owner.close()


def test_each_account_has_its_own_limits_and_its_file_not_the_key(server, settings):
    server.keys.add("another-key")
    owners = [
        Owner(settings._replace(max_sessions=1)),
        Owner(settings._replace(max_sessions=1, api_key="another-key", owner="gw1")),
    ]
    for owner in owners:
        owner.create({}, "t")
    files = list(settings.folder.parent.glob("limits-*"))
    assert len(files) == 2
    assert not any(key in f"{file}{file.read_text()}" for file in files for key in server.keys)
    for owner in owners:
        owner.close()


@pytest.mark.parametrize("text", ["x", "-5", "9" * 400, "\0", ""])
def test_a_plans_cap_that_was_edited_caps_nothing_or_sensibly(server, owner, text):
    run, api = owner.open()
    (run.folder / "cap").write_text(text)
    assert 0 <= plan_cap(api, run) <= limits_module.MAX_CAP


def test_a_slot_is_free_when_the_session_is_over(server, settings):
    server.cap = 1
    owner = Owner(settings)
    for _ in range(3):
        owner.create({}, "t").end()
    session = owner.create({}, "t")
    with pytest.raises(AnchorLimitError, match="itself"):
        owner.create({}, "t")
    owner.end([session], how="teardown", timeout=5)
    server.fail("POST", fs.status(402))
    with pytest.raises(AnchorAPIError):
        owner.create({}, "t")
    owner.create({}, "t")
    owner.close()


def test_what_a_teardown_could_not_end_is_tried_again_by_who_waits(server, settings):
    server.cap = 1
    owner = Owner(settings._replace(create_timeout=20.0))
    session = owner.create({}, "t")
    server.fail_always("DELETE", fs.for_a_while(1.0, fs.status(500)))
    assert owner.end([session], how="teardown", timeout=0.5)
    other = owner.create({}, "u")
    assert server.alive == [other.id]
    owner.close()


def test_what_a_teardown_could_not_end_is_tried_again_while_another_waits(server, settings, monkeypatch):
    monkeypatch.setattr(session_module, "END_AGAIN", 0.1)
    server.cap = 1
    owner, other = Owner(settings), Owner(settings._replace(owner="gw1", create_timeout=60.0))
    session = owner.create({}, "t")
    server.fail_always("DELETE", fs.for_a_while(1.0, fs.status(500)))
    assert owner.end([session], how="teardown", timeout=0.5)
    server.requests.clear()
    time.sleep(0.5)
    assert server.requests == [], "nobody waits"
    got = other.create({}, "u")
    assert server.alive == [got.id]
    for one in (owner, other):
        one.finish(5)
        one.close()


def test_a_thread_that_may_end_a_session_is_waited_for(server, settings):
    server.cap = 1
    owner = Owner(settings._replace(create_timeout=20.0))
    created, go = [], threading.Event()

    def hold():
        created.append(owner.create({}, "t"))
        go.wait(BUSY)
        created[0].end()

    thread = in_background(hold)
    wait_for(lambda: created)
    threading.Timer(0.4, go.set).start()
    owner.create({}, "t")
    thread.join()
    owner.close()


def test_a_wait_that_is_interrupted_leaves_the_queue(server, settings, monkeypatch):
    server.cap = 1
    owner = Owner(settings._replace(create_timeout=20.0))
    owner.create({}, "t")
    monkeypatch.setattr(owner, "_is_stuck", lambda: False)
    main = threading.get_ident()
    threading.Timer(0.4, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        owner.create({}, "t")
    assert not owner.limits.is_crowded()
    assert len(owner.join().read().records) == 1
    owner.close()
