"""The file of the limits: whatever is wrong with it costs speed at most."""

import os
import time
from contextlib import nullcontext

import pytest
from limited_owners import BUSY, Registry, begin, in_background, wait_for
from processes import full_disk

from pytest_anchor.budget.file_store import guarded
from pytest_anchor.errors import AnchorLimitError, Limit


@pytest.fixture
def registry(tmp_path):
    with Registry(tmp_path / ".pytest_anchor") as registry:
        yield registry


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
    assert not limits.is_crowded()
    limits.holders.describe(limits.store.read()[0].slots, {})
    limits.release_slots(["x"])
    registry.file.write_bytes(text)
    begin(limits)
    limits.record_rate_limited("n", 0.0, Limit(0.0, 5, 1.0))
    assert limits.store._saved


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
    limits.record_rate_limited("n", 0.0, Limit(0.0, None, None))
    assert target.read_text() == "precious"


@pytest.mark.parametrize("how", ["folder", "full"])
def test_what_was_learned_holds_though_it_cannot_be_written(registry, how):
    limits = registry.owner(cap=1, timeout=20)
    if how == "folder":
        registry.file.mkdir()
    with full_disk(10) if how == "full" else nullcontext():
        begin(limits, "a")
        limits.record_rate_limited("b", 0.0, Limit(1.0, None, None))
        limits.release_slots(["a"])
        start = time.monotonic()
        begin(limits, "a")
        took = time.monotonic() - start
        with pytest.raises(AnchorLimitError, match="itself"):
            begin(limits, "c", self_blocked=True)
    assert took > 0.8


def test_who_could_not_write_for_a_while_takes_his_own_slots_back_and_leaves_the_others(registry):
    limits, other = registry.owner("gw0", cap=5), registry.owner("gw1", cap=5)
    begin(limits, "a"), begin(other, "b")
    hidden = registry.file.rename(registry.file.with_suffix(".hidden"))
    registry.file.mkdir()
    begin(limits, "c")
    limits.release_slots(["a"])
    limits.record_rate_limited("x", 0.0, Limit(20.0, 5, 60.0))
    registry.file.rmdir()
    hidden.rename(registry.file)
    begin(other, "d")
    limits.release_slots([])
    limits.mark_slots(["c"], "ending")
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
        begin(limits, "d", self_blocked=True)


def test_a_lock_that_is_never_free_is_waited_for_once(registry):
    limits = registry.owner(cap=5)
    limits.store._lock_timeout = 0.5
    with guarded(registry.file, 1.0):
        start = time.monotonic()
        for number in range(20):
            begin(limits, f"n{number % 5}")
            limits.release_slots([f"n{number % 5}"])
        assert time.monotonic() - start < 0.5 + BUSY


def test_an_interruption_as_a_change_begins_locks_nobody_out(registry):
    limits = registry.owner(cap=5)
    cut_off = guarded(registry.file, 1.0)
    cut_off.__enter__()  # an exception just here makes `with` forget it
    limits.store._lock_timeout = 0.1
    limits.leave_queue("ticket", "n")
    del cut_off
    in_background(lambda: begin(limits, "a")).join(BUSY)
    assert list(registry.state["slots"]) == ["a"]


def test_a_creation_that_is_interrupted_as_it_begins_holds_nothing(registry, monkeypatch):
    limits = registry.owner(cap=1)
    try_admit = limits.try_admit

    def admit_and_fail(applicant):
        assert try_admit(applicant).began is not None
        raise KeyboardInterrupt

    monkeypatch.setattr(limits, "try_admit", admit_and_fail)
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
    red.release_slots(["a"])
    waiter.join(BUSY)
    assert "\x1b" not in str(caught.value)
