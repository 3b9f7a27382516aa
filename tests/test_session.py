import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import MappingProxyType

import fault_server as fs
import pytest
from fault_server import KEY

from pytest_anchor.client import Client
from pytest_anchor.configuration import check_keywords, merge, with_tags
from pytest_anchor.errors import AnchorAPIError, AnchorConfigError, AnchorLostCreateError, AnchorRegistryError
from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.locks import JOURNAL
from pytest_anchor.session import AnchorSessionFactory


@pytest.fixture
def factory(client):
    return AnchorSessionFactory(client, {}, lambda: "t.py::x")


def records(client):
    return list(Run(client.settings.folder).read().records.values())


def states(client):
    return [record.state for record in records(client)]


def files(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


# the factory


def test_a_session_is_recorded_tagged_and_ended(server, client, factory):
    before = datetime.now(timezone.utc)
    session = factory(session={"tags": ["mine"]})
    assert server.alive == [session.id]
    assert not session.ended
    assert before <= session.created_at <= before + timedelta(seconds=20)
    (record,) = records(client)
    assert (record.id, record.owner, record.test, record.base_url) == (session.id, "main", "t.py::x", server.url)
    tags = server.sessions[session.id].tags
    assert tags == ["mine", "pytest-anchor", "pytest-anchor:run=r1", f"pytest-anchor:new={record.nonce}"]
    assert record.nonce.startswith("inv-")
    session.end()
    assert session.ended
    assert server.alive == []
    assert states(client) == ["ended"]
    session.end()
    assert server.count("DELETE") == 1


def test_the_intent_is_on_record_before_the_request(server, client, factory):
    seen = []

    def look(_handler, act):
        seen.extend(states(client))
        return act()

    server.fail("POST", look)
    factory()
    assert seen == ["pending"]
    assert states(client) == ["open"]


def test_the_key_is_shown_and_written_nowhere(client, factory):
    session = factory()
    assert KEY in session.cdp_url
    for shown in (session, session.cdp_url, [session.cdp_url], factory, client.settings, client):
        assert KEY not in repr(shown)
    assert repr(session) == f"<AnchorSession {session.id} open>"
    assert repr(factory) == "<AnchorSessionFactory 1 created>"
    session.end()
    assert repr(session) == f"<AnchorSession {session.id} ended>"
    assert repr(session.live_view_url) == repr(str(session.live_view_url))
    assert KEY.encode() not in files(client.settings.folder.parent)


def test_leaving_the_context_ends_the_session(server, factory):
    with factory() as session:
        assert server.alive == [session.id]
    assert session.ended


def test_an_error_in_the_context_is_the_one_that_is_seen(server, factory):
    server.fail_always("DELETE", fs.status(403))
    with pytest.raises(AnchorAPIError, match="HTTP 403"), factory():
        pass
    with pytest.raises(ZeroDivisionError), factory():
        raise ZeroDivisionError
    assert len(server.alive) == 2


def test_a_failed_end_is_raised_recorded_and_may_be_repeated(server, client, factory):
    session = factory()
    server.fail_always("DELETE", fs.status(500, "broken"))
    with pytest.raises(AnchorAPIError, match="broken.*tried 4 times"):
        session.end()
    assert not session.ended
    assert states(client) == ["open"]
    server.fail_always("DELETE", None)
    session.end()
    assert session.ended
    assert states(client) == ["ended"]


def test_threads_that_end_one_session_ask_once(server, factory):
    session = factory()
    server.fail("DELETE", fs.slow(0.1))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: session.end(), range(4)))
    assert server.count("DELETE") == 1


def test_threads_create_at_once(server, factory):
    with ThreadPoolExecutor(8) as pool:
        sessions = list(pool.map(lambda _: factory(), range(16)))
    assert {session.id for session in sessions} == set(server.alive)
    assert factory.close(5) == {}
    assert server.alive == []


def test_close_ends_what_is_left_at_once_and_names_what_it_could_not(server, factory):
    sessions = [factory() for _ in range(4)]
    sessions[0].end()
    bad = sessions[2].id
    both = threading.Barrier(2)

    def fault(handler, act):
        if bad in handler.path:
            return fs.error(403)
        both.wait(5)  # fails if they come one after the other
        return act()

    server.fail_always("DELETE", fault)
    failures = factory.close(5)
    assert {session.id: error.status for session, error in failures.items()} == {bad: 403}
    assert server.alive == [bad]


def test_close_keeps_to_its_time(server, client, factory):
    sessions = [factory(), factory()]
    server.fail_always("DELETE", fs.silent)
    before = time.monotonic()
    assert set(factory.close(0.3)) == set(sessions)
    assert time.monotonic() - before < 8
    assert states(client) == ["open", "open"]


def test_close_later_ends_what_is_left_and_does_not_wait(server, client, factory, until):
    sessions = [factory() for _ in range(3)]
    sessions[0].end()
    server.held["DELETE"] = threading.Event()
    factory.close_later()
    assert [session.ended for session in sessions] == [True, False, False]
    server.held["DELETE"].set()
    until(lambda: states(client) == ["ended"] * 3)
    assert server.count("DELETE") == 3
    assert [record.ended_by for record in records(client)] == ["test", "teardown", "teardown"]


@pytest.mark.parametrize("close", [lambda factory: factory.close(5), AnchorSessionFactory.close_later])
def test_what_is_still_being_created_when_the_factory_is_closed_is_ended(server, client, factory, until, close):
    server.held["POST"] = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        creation = pool.submit(factory)
        until(lambda: server.count("POST"))
        close(factory)
        server.held["POST"].set()
        creation.result(20)
    until(lambda: states(client) == ["ended"])
    assert factory().id in server.alive


def test_close_of_an_unused_factory_opens_nothing(client, factory):
    assert factory.close(1) == {}
    assert not client.settings.folder.parent.exists()


# refused before anything is sent


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"sesion": {}}, TypeError),
        ({"browser": {"x": object()}}, TypeError),
        ({"browser": {"x": float("nan")}}, ValueError),
        ({"session": "text"}, AnchorConfigError),
        ({"session": {"tags": "text"}}, AnchorConfigError),
        ({"session": {"tags": None}}, AnchorConfigError),
    ],
)
def test_what_cannot_be_sent_is_not_recorded(server, client, factory, given, kind):
    with pytest.raises(kind):
        factory(**given)
    assert server.requests == []
    assert states(client) == []


@pytest.mark.parametrize("key", [None, "", "bad\nkey"])
def test_without_a_usable_key_nothing_is_made(server, settings, key):
    factory = AnchorSessionFactory(Client(settings._replace(api_key=key)), {}, lambda: "t")
    with pytest.raises(AnchorConfigError, match="ANCHORBROWSER_API_KEY"):
        factory()
    assert server.requests == []
    assert not settings.folder.parent.exists()
    assert not Path(settings.socket_folder).exists()


def test_without_a_registry_nothing_is_created(server, client, factory):
    client.settings.folder.parent.write_text("in the way")
    with pytest.raises(AnchorRegistryError):
        factory()
    assert server.requests == []


def test_without_room_for_the_intent_nothing_is_created(server, client, factory):
    factory().end()
    journal = client.settings.folder / JOURNAL
    journal.unlink()
    journal.mkdir()
    with pytest.raises(AnchorRegistryError):
        factory()
    assert server.count("POST") == 1


def test_a_session_whose_id_cannot_be_written_is_ended_at_once(server, client, factory):
    def break_the_journal(_handler, act):
        (client.settings.folder / JOURNAL).unlink()
        (client.settings.folder / JOURNAL).mkdir()
        return act()

    server.fail("POST", break_the_journal)
    with pytest.raises(AnchorRegistryError):
        factory()
    assert len(server.sessions) == 1
    assert server.alive == []


@pytest.mark.parametrize(("room", "posts"), [(0, 0), ("intent", 1)])
def test_a_full_disk_leaves_no_session(server, tmp_path, room, posts):
    code = """
import resource, sys
from pathlib import Path
from pytest_anchor.api import AnchorAPI
from pytest_anchor.broker.owner import Owner, Request
from pytest_anchor.errors import AnchorRegistryError
from pytest_anchor.registry.journal import Run
from pytest_anchor.settings import Settings
url, folder, key, room = sys.argv[1:]
run = Run(Path(folder))
run.join()
settings = Settings("r1", Path(folder), "main", url, key, False, "", "fail", 5.0, False)
owner = Owner("main", settings, run, AnchorAPI(url, key), 0)
session = owner.create({}, Request("t"))
owner.end([session.record.nonce], ended_by="test", timeout=5)
journal = Path(folder, "journal.jsonl")
size = journal.stat().st_size
intent = len(journal.read_bytes().split(b"\\n")[0]) + 10
resource.setrlimit(resource.RLIMIT_FSIZE, (size + (intent if room == "intent" else 0), resource.RLIM_INFINITY))
try:
    owner.create({}, Request("t"))
except AnchorRegistryError:
    print("refused")
"""
    arguments = [server.url, str(tmp_path / "reg" / "inv"), KEY, str(room)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("refused\n", "")
    assert server.count("POST") == 1 + posts
    assert server.alive == []


# what the API answers


def test_a_refused_creation_is_settled(server, client, factory):
    server.fail("POST", fs.status(402))
    with pytest.raises(AnchorAPIError):
        factory()
    assert states(client) == ["refused"]


LOST = [fs.lost_reset, fs.lost_status(500), fs.lost_body(b"x"), fs.lost_truncated]


@pytest.mark.parametrize("fault", LOST)
def test_a_lost_creation_is_recorded_as_lost(server, serve, settings, fault):
    client = serve(settings._replace(create_retries=0))
    server.fail("POST", fault)
    with pytest.raises(AnchorLostCreateError) as caught:
        AnchorSessionFactory(client, {}, lambda: "t")()
    (record,) = records(client)
    assert (record.state, record.error) == ("lost", caught.value.fields())
    assert caught.value.tries == 1
    assert time.time() - record.time < 20
    assert KEY.encode() not in pickle.dumps(caught.value)


@pytest.mark.parametrize(
    "fault", [fs.lost_reset, fs.lost_status(500), fs.lost_truncated, fs.reset, fs.status(503), fs.status(408)]
)
def test_a_lost_creation_is_retried_and_the_lost_session_ended(server, client, factory, until, fault):
    server.fail("POST", fault)
    session = factory()
    assert server.count("POST") == 2
    until(lambda: server.alive == [session.id])
    (mine,) = (record for record in records(client) if record.id == session.id)
    assert (mine.retried, mine.state) == (1, "open")
    tags = [one.tags[-1] for one in server.sessions.values()]
    assert len(set(tags)) == len(tags), "two creations with one nonce"


def test_the_report_counts_what_was_retried(server, client, factory):
    server.fail("POST", fs.lost_reset, fs.lost_reset)
    factory()
    lines = client.request("sweep", timeout=10, has_remote_workers=False, verbose=False)["lines"]
    assert "2 creations retried" in [text for text, _ in lines]
    assert server.alive == []


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_a_creation_is_retried_so_often_and_the_error_tells_the_tries(server, serve, settings, until, retries):
    client = serve(settings._replace(create_retries=retries))
    server.fail_always("POST", fs.lost_status(500))
    with pytest.raises(AnchorLostCreateError) as caught:
        AnchorSessionFactory(client, {}, lambda: "t")()
    assert server.count("POST") == caught.value.tries == 1 + retries
    until(lambda: len(server.alive) == 1)  # all but the last are looked for at once, that one by the sweep
    client.request("sweep", timeout=10, has_remote_workers=False, verbose=False)
    assert server.alive == []


def test_a_creation_is_not_retried_when_its_time_is_up(server, serve, settings):
    client = serve(settings._replace(create_timeout=0.1))
    server.fail_always("POST", fs.status(500))
    with pytest.raises(AnchorLostCreateError):
        AnchorSessionFactory(client, {}, lambda: "t")()
    assert server.count("POST") == 1


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404])
def test_a_refused_creation_is_not_retried(server, client, factory, status):
    server.fail_always("POST", fs.status(status))
    with pytest.raises(AnchorAPIError) as caught:
        factory()
    assert type(caught.value) is AnchorAPIError
    assert server.count("POST") == 1


# what is shared by all creations of a process


def test_a_run_is_live_from_its_first_session_until_its_process_leaves(client, factory, until):
    reader = Run(client.settings.folder)
    assert not reader.is_live
    factory()
    assert reader.is_live
    client.leave()
    until(lambda: not reader.is_live)


def test_threads_that_ask_for_the_first_session_open_the_run_once(server, serve, settings):
    server.cap = 100
    client = serve(settings._replace(max_sessions=None))
    factory, barrier = AnchorSessionFactory(client, {}, lambda: "t"), threading.Barrier(4)

    def create(_):
        barrier.wait(10)
        return factory()

    with ThreadPoolExecutor(4) as pool:
        assert len({session.id for session in pool.map(create, range(4))}) == 4
    assert server.asked_for_cap == 1
    assert len(records(client)) == 4


def test_what_is_to_come_before_and_after_a_creation_comes_each_time(server, client):
    seen = []

    def note(what):
        return lambda: seen.append((what, server.count("POST")))

    factory = AnchorSessionFactory(client, {}, lambda: "t", before_create=note("before"), after_create=note("after"))
    assert seen == []
    factory().end()
    factory()
    assert seen == [("before", 0), ("after", 1), ("before", 1), ("after", 2)]


def test_a_factory_asks_for_its_test_each_time(client):
    tests = iter("ab")
    factory = AnchorSessionFactory(client, {}, lambda: next(tests))
    factory(), factory()
    assert [record.test for record in records(client)] == ["a", "b"]


def test_a_record_tells_the_run_the_folder_and_is_signed(api, client, factory):
    session = factory()
    (record,) = records(client)
    assert (record.run_id, record.folder_inode) == ("r1", client.settings.folder.stat().st_ino)
    assert (record.base_url, record.fingerprint) == (api.base_url, api.fingerprint)
    assert record.signature == api.sign(record.nonce, session.id)


def test_the_moment_of_creation_is_not_the_test_process_s(monkeypatch, client, factory):
    monkeypatch.setattr("pytest_anchor.session.datetime", FrozenClock)
    before = time.time()
    assert before <= factory().created_at.timestamp() <= before + 20


class FrozenClock(datetime):
    """What a test that freezes time makes of this class."""

    @classmethod
    def now(cls, tz=None):
        return cls(1970, 1, 1, tzinfo=tz)


# merging


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        ({}, {}, {}),
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": {"x": 1, "y": {"p": 1}}}, {"a": {"y": {"q": 2}}}, {"a": {"x": 1, "y": {"p": 1, "q": 2}}}),
        ({"a": {"x": 1}}, {"a": 2}, {"a": 2}),
        ({"a": 2}, {"a": {"x": 1}}, {"a": {"x": 1}}),
        ({"a": {"x": 1}}, {"a": None}, {"a": None}),
        ({"list": [1]}, {"list": [2]}, {"list": [2]}),
        ({"tags": ["a", "b"]}, {"tags": ["b", "c"]}, {"tags": ["a", "b", "c"]}),
        ({"tags": ("a",)}, {"tags": ("c",)}, {"tags": ["a", "c"]}),
        ({"tags": ["a"]}, {"tags": "x"}, {"tags": "x"}),
        ({"tags": None}, {"tags": ["x"]}, {"tags": ["x"]}),
    ],
)
def test_merge(base, over, merged):
    assert merge(base, over) == merged


def test_merging_changes_neither_side():
    base, over = {"a": {"tags": ["x"]}}, {"a": {"tags": ["y"]}}
    assert merge(base, over) == {"a": {"tags": ["x", "y"]}}
    assert (base, over) == ({"a": {"tags": ["x"]}}, {"a": {"tags": ["y"]}})


def test_the_calls_keywords_win_over_the_defaults_and_any_mapping_will_do(server, client):
    sent = []
    server.fail("POST", lambda h, act: sent.append(int(h.headers["content-length"])) or act())
    defaults = {"session": {"tags": ["a"]}, "browser": {"viewport": {"width": 1}}}
    factory = AnchorSessionFactory(client, defaults, lambda: "t")
    session = factory(session=MappingProxyType({"tags": ["b"]}), browser=MappingProxyType({"viewport": {}}))
    assert server.sessions[session.id].tags[:2] == ["a", "b"]
    assert sent
    assert defaults == {"session": {"tags": ["a"]}, "browser": {"viewport": {"width": 1}}}


def test_tags_are_added_behind_ones_own():
    assert with_tags({}, ["t"]) == {"session": {"tags": ["t"]}}
    assert with_tags({"session": {"x": 1, "tags": ("a", "t")}}, ["t"]) == {"session": {"x": 1, "tags": ["a", "t"]}}


def test_unknown_keywords_are_named_with_the_valid_ones():
    check_keywords({"session": {}, "identities": []}, "here")
    with pytest.raises(TypeError, match="here got an unknown keyword 'a'; the valid ones are session, browser, "):
        check_keywords({"z": 1, "a": 2}, "here")
