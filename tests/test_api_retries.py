import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fault_server as fs
import pytest
from api_calls import TAG, frames, later, when
from fault_server import KEY

from pytest_anchor.api import AnchorAPI, Ended
from pytest_anchor.api import caller as caller_module
from pytest_anchor.api.caller import Call
from pytest_anchor.errors import AnchorAPIError, Limit

# retries


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504, 520])
def test_passing_trouble_is_asked_again(server, api, code):
    session_id = server.add()
    server.fail("DELETE", *[fs.status(code)] * 3)
    assert api.end(session_id, TAG, deadline=later()) == Ended(already=False)
    assert server.alive == []
    server.fail("GET", *[fs.status(code)] * 3)
    assert api.sessions_with_tag(TAG, deadline=later()) == []
    assert (server.count("DELETE"), server.count("GET")) == (4, 4)


def test_resets_are_asked_again(server, api):
    session_id = server.add()
    server.fail("DELETE", *[fs.reset] * 3)
    server.fail("GET", *[fs.reset] * 3)
    api.end(session_id, TAG, deadline=later())
    api.sessions_with_tag(TAG, deadline=later())
    assert (server.count("DELETE"), server.count("GET")) == (4, 4)


def test_an_answer_that_is_cut_off_is_asked_for_again(server, api):
    session_id = server.add(TAG)
    server.fail("GET", *[fs.lost_truncated] * 3)
    assert [one.id for one in api.sessions_with_tag(TAG, deadline=later())] == [session_id]
    assert server.count("GET") == 4


@pytest.mark.parametrize("fault", [fs.status(500, "still broken"), fs.reset], ids=["500", "reset"])
def test_after_four_tries_it_gives_up(server, api, fault):
    server.fail_always("DELETE", fault)
    with pytest.raises(AnchorAPIError, match="tried 4 times") as caught:
        api.end(server.add(TAG), TAG, deadline=later())
    assert caught.value.tries == server.count("DELETE") == 4
    assert caught.value.status == (500 if fault is not fs.reset else None)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("before", "seconds", "told"),
    [
        ([fs.status(500, "we broke")], 0.5, 500),
        ([fs.status(500, "we broke"), fs.reset], 1.0, None),  # the failure before it counts
        ([fs.status(500, "we broke")], 2.3, None),  # it hangs
    ],
)
def test_the_answer_before_an_attempt_that_is_cut_short_is_told(server, api, before, seconds, told):
    server.fail("DELETE", *before)
    server.fail_always("DELETE", fs.silent)
    with pytest.raises(AnchorAPIError, match="we broke" if told else "no answer in time") as caught:
        api.end(server.add(TAG), TAG, deadline=later(seconds))
    assert (caught.value.status, caught.value.tries) == (told, len(before) + 1)
    assert server.count("GET") == 0  # there is no time for it


def test_so_it_is_of_a_list(server, api):
    server.fail("GET", fs.status(503), fs.silent)
    with pytest.raises(AnchorAPIError) as caught:
        api.sessions_with_tag(TAG, deadline=later(0.5))
    assert (caught.value.status, caught.value.tries) == (503, 2)


@pytest.mark.parametrize("code", [400, 403, 500])
def test_an_error_is_settled_by_the_list_as_well(server, api, code):
    server.fail_always("DELETE", fs.status(code, "no"))
    running, over = server.add(TAG), server.add(TAG)
    server.end(over)
    assert api.end(over, TAG, deadline=later()) == Ended(already=True)
    for session_id in (running, "unknown"):
        with pytest.raises(AnchorAPIError, match="no") as caught:
            api.end(session_id, TAG, deadline=later())
        assert (caught.value.status, caught.value.what) == (code, f"end session {session_id}")
    server.fail_always("GET", fs.status(402))
    with pytest.raises(AnchorAPIError, match="no") as caught:
        api.end(over, TAG, deadline=later())
    assert caught.value.status == code


@pytest.mark.parametrize("code", [400, 402, 403, 405, 409, 422, 501])
def test_lasting_trouble_is_not_asked_again(server, api, code):
    server.fail_always("DELETE", fs.status(code, "no"))
    with pytest.raises(AnchorAPIError) as caught:
        api.end(server.add(TAG), TAG, deadline=later())
    assert (caught.value.status, caught.value.tries) == (code, 1)
    assert server.count("DELETE") == 1


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize(
    "value",
    [lambda: "999999999", lambda: "9" * 400, lambda: when(3600), lambda: "Fri, 31 Dec 9999 23:59:59 GMT"],
    ids=["seconds", "digits", "date", "9999"],
)
def test_retry_after_is_waited_for_but_not_for_ever(server, api, code, value, monkeypatch):
    monkeypatch.setattr(caller_module, "MAX_RETRY_AFTER", 0.15)
    monkeypatch.setattr(caller_module, "FIRST_PAUSE", 0.15)  # what a 429 asks for in vain
    server.fail("DELETE", fs.status(code, Retry_After=value()))
    before = time.monotonic()
    api.end(server.add(), TAG, deadline=later())
    assert 0.15 <= time.monotonic() - before < 10


@pytest.mark.parametrize(
    "value", ["junk", "-5", "0", "Wed, 21 Oct 2015 07:28:00 GMT", "Fri, 31 Dec 99999 23:59:59 GMT"]
)
def test_retry_after_that_says_nothing_is_no_reason_to_wait(server, api, value):
    server.fail("DELETE", fs.status(429, Retry_After=value))
    before = time.monotonic()
    api.end(server.add(), TAG, deadline=later())
    assert time.monotonic() - before < 5
    assert server.count("DELETE") == 2


def test_retry_after_in_seconds(server, api):
    server.fail("GET", fs.status(429, Retry_After="1"))
    before = time.monotonic()
    api.sessions_with_tag(TAG, deadline=later())
    assert 1 <= time.monotonic() - before < 10


def test_retries_back_off(server):
    server.fail("GET", *[fs.status(500)] * 2)
    before = time.monotonic()
    AnchorAPI(server.url, KEY).sessions_with_tag(TAG, deadline=later())
    assert 0.4 <= time.monotonic() - before < 10


def test_nothing_is_waited_for_past_the_deadline(server, api):
    server.fail_always("DELETE", fs.status(429, "slow down", Retry_After="25"))
    before = time.monotonic()
    with pytest.raises(AnchorAPIError, match="slow down") as caught:
        api.end(server.add(TAG), TAG, deadline=later(20))
    assert time.monotonic() - before < 10
    assert (caught.value.status, caught.value.tries, server.count("DELETE")) == (429, 1, 1)


def test_resets_are_not_asked_again_past_the_deadline(server):
    server.fail_always("DELETE", fs.reset)
    with pytest.raises(AnchorAPIError) as caught:
        AnchorAPI(server.url, KEY).end(server.add(TAG), TAG, deadline=later(0.2))
    assert caught.value.tries == server.count("DELETE") == 2  # the first retry follows at once


# the pause after a 429


def together(number, call):
    """What *number* threads that make the *call* return or raise."""

    def one(n):
        try:
            return call(n)
        except AnchorAPIError as error:
            return error

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number)))


def test_a_429_holds_all_but_creations_back(server, api):
    session_id = server.add(TAG)
    server.fail("DELETE", fs.status(429, Retry_After="1"))
    ending = threading.Thread(target=lambda: api.end(session_id, TAG, deadline=later(20)))
    ending.start()
    while api.quiet_until == 0:
        time.sleep(0.001)
    until = api.quiet_until
    assert api.create({}).id
    lists = together(8, lambda _: api.sessions_with_tag(TAG, deadline=later(20)))
    assert [[one.id for one in listed] for listed in lists] == [[session_id]] * 8
    ending.join(20)
    assert [method for method, _ in server.requests[:2]] == ["DELETE", "POST"]
    assert min(server.times[2:]) >= until
    assert server.times[1] < until
    assert session_id not in server.alive


def test_those_who_waited_do_not_begin_at_the_same_moment(server, api, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept) and 1e9)
    waits = set()
    for _ in range(100):
        slept.clear()
        api._caller.pause.until = 7.0
        api._caller.pause.wait(Call("x", 60.0))
        assert 7.0 <= slept[0] <= 7.0 + caller_module.WAKE_JITTER == 7.1
        assert len(slept) == 1
        waits.add(round(slept[0], 2))
    assert len(waits) > 5


def test_each_429_of_a_call_makes_the_pause_longer():
    for _ in range(100):
        call = Call("x", 60.0)
        pauses = [call.pause_after(Limit(None, None, None)) for _ in range(12)]
        for n, pause in enumerate(pauses):
            assert min(0.25 * 2**n, 30) <= pause <= min(0.375 * 2**n, 30)
        assert Call("x", 60.0).pause_after(Limit(3.0, None, None)) == 3.0
        assert Call("x", 60.0).pause_after(Limit(31.0, None, None)) == 30.0
        assert Call("x", 60.0).pause_after(Limit(0.0, None, None)) >= 0.25


def test_a_later_429_does_not_shorten_the_pause(server, api):
    server.fail("GET", fs.status(429, Retry_After="20"))
    for _ in range(2):
        with pytest.raises(AnchorAPIError):
            api.sessions_with_tag(TAG, deadline=later(0.3))
    api._caller.pause.extend(0.1)
    assert api.quiet_until - time.monotonic() > 10


def test_where_the_pause_is_longer_than_the_deadline_nothing_is_sent(server, api):
    server.fail_always("DELETE", fs.status(429, "slow down", Retry_After="30"))
    session_id = server.add(TAG)
    before = time.monotonic()
    with pytest.raises(AnchorAPIError, match="slow down"):
        api.end(session_id, TAG, deadline=later(20))
    with pytest.raises(AnchorAPIError, match="HTTP 429: “the API asked to wait another .*fewer workers") as caught:
        api.end(session_id, TAG, deadline=later(20))
    assert (caught.value.status, caught.value.tries, caught.value.limit) == (429, 0, None)
    assert caught.value.what == f"end session {session_id}"
    with pytest.raises(AnchorAPIError, match="could not list the run's sessions: HTTP 429"):
        api.sessions_with_tag(TAG, deadline=later(20))
    assert time.monotonic() - before < 10
    assert len(server.requests) == 1


def test_a_session_that_is_not_known_while_the_api_asks_to_wait_is_not_settled(server, api):
    def refuse(_handler, _act):
        api._caller.pause.extend(30)  # another thread met a 429
        return fs.error(401)

    server.fail("DELETE", refuse)
    with pytest.raises(AnchorAPIError, match="the API asked to wait") as caught:
        api.end("abc", TAG, deadline=later(1))
    assert (caught.value.status, caught.value.tries, len(server.requests)) == (429, 1, 1)
    assert caught.value.what == "end session abc"


def test_the_read_that_settles_an_end_waits_as_well(server, api):
    session_id = server.add(TAG)
    server.end(session_id)
    server.fail("GET", fs.status(429, Retry_After="1"))
    before = time.monotonic()
    assert api.end(session_id, TAG, deadline=later(20)) == Ended(already=True)
    assert time.monotonic() - before >= 1
    server.fail("GET", fs.status(429, Retry_After="20", RateLimit_Policy="q=5;w=60"))
    with pytest.raises(AnchorAPIError) as caught:
        api.end(session_id, TAG, deadline=later(2))
    assert (caught.value.status, caught.value.limit) == (429, Limit(20.0, 5, 60.0))


def test_other_retries_keep_the_pause(server, api):
    pause = 0.8

    def broken(_handler, _act):
        api._caller.pause.extend(pause)  # another thread met a 429
        return fs.error(500)

    server.fail("DELETE", broken)
    api.end(server.add(TAG), TAG, deadline=later(20))
    assert server.times[1] - server.times[0] >= 0.75
    pause = 20.0
    server.fail("DELETE", broken)
    with pytest.raises(AnchorAPIError, match="the API asked to wait") as caught:
        api.end(server.add(TAG), TAG, deadline=later(5))
    assert (caught.value.tries, server.count("DELETE")) == (1, 3)


def test_a_429_without_an_end_pauses_as_well(server, api):
    server.fail("DELETE", fs.body(b"x" * 2_000_000, 429, Retry_After="20"))
    with pytest.raises(AnchorAPIError, match="more than 1048576 bytes"):
        api.end(server.add(TAG), TAG, deadline=later(2))
    assert api.quiet_until - time.monotonic() > 10


def test_a_creations_429_is_the_callers(server, api):
    server.fail("POST", fs.status(429, Retry_After="20"))
    with pytest.raises(AnchorAPIError):
        api.create({})
    assert api.quiet_until == 0
    api._caller.pause.extend(30)
    api.create({})
    assert server.count("POST") == 2


def test_ctrl_c_gets_through_a_pause(server, api):
    api._caller.pause.extend(20)
    timer = threading.Timer(0.2, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    before = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt) as caught:
        api.sessions_with_tag(TAG, deadline=later(60))
    timer.join()
    assert time.monotonic() - before < 10
    assert not [text for text in frames(caught.value) if KEY in text]
    assert server.requests == []


def test_the_key_is_in_no_frame_after_a_429_that_repeats_it(server, api):
    server.fail("GET", fs.body(f"no, {KEY}".encode(), 429))
    server.fail_always("GET", fs.reset)
    with pytest.raises(AnchorAPIError) as caught:
        api.sessions_with_tag(TAG, deadline=later(0.8))
    assert server.count("GET") >= 2
    assert not [text for text in frames(caught.value) if KEY in text]


def test_a_forked_child_keeps_the_pause(server, api):
    api._caller.pause.extend(30)
    with api._caller.pause._lock:  # as another thread might hold it
        child = os.fork()
        if child == 0:
            status = 1
            try:
                api._caller.pause.extend(1)
                api.sessions_with_tag(TAG, deadline=later(2))
            except AnchorAPIError:
                status = 0
            finally:
                os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert server.requests == []
