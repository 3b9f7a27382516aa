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

from pytest_anchor.errors import AnchorAPIError, AnchorConfigError, AnchorLostCreateError, AnchorRegistryError
from pytest_anchor.locks import JOURNAL
from pytest_anchor.registry import Run
from pytest_anchor.session import AnchorSessionFactory, Owner, check_keywords, merge, with_tags


@pytest.fixture
def factory(owner):
    return AnchorSessionFactory(owner, {}, lambda: "t.py::x")


def states(owner):
    return [record.state for record in Run(owner.settings.folder, "reader").read().records.values()]


def files(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


# the factory


def test_a_session_is_recorded_tagged_and_ended(server, owner, factory):
    before = datetime.now(timezone.utc)
    session = factory(session={"tags": ["mine"]})
    assert server.alive == [session.id]
    assert not session.ended
    assert before <= session.created_at <= before + timedelta(seconds=20)
    record = next(iter(Run(owner.settings.folder, "reader").read().records.values()))
    assert (record.id, record.owner, record.test, record.base_url) == (session.id, "main", "t.py::x", server.url)
    tags = server.sessions[session.id].tags
    assert tags == ["mine", "pytest-anchor", "pytest-anchor:run=r1", f"pytest-anchor:new={record.nonce}"]
    assert record.nonce.startswith("inv-")
    session.end()
    assert session.ended
    assert server.alive == []
    assert states(owner) == ["ended"]
    session.end()
    assert server.count("DELETE") == 1


def test_the_intent_is_on_record_before_the_request(server, owner, factory):
    seen = []

    def look(_handler, act):
        seen.extend(states(owner))
        return act()

    server.fail("POST", look)
    factory()
    assert seen == ["pending"]
    assert states(owner) == ["open"]


def test_the_key_is_shown_and_written_nowhere(owner, factory):
    session = factory()
    assert KEY in session.cdp_url
    for shown in (session, session.cdp_url, [session.cdp_url], factory, owner.settings, owner.open(), owner):
        assert KEY not in repr(shown)
    assert repr(session) == f"<AnchorSession {session.id} open>"
    assert repr(factory) == "<AnchorSessionFactory 1 created>"
    session.end()
    assert repr(session) == f"<AnchorSession {session.id} ended>"
    assert repr(session.live_view_url) == repr(str(session.live_view_url))
    assert KEY.encode() not in files(owner.settings.folder.parent)


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


def test_a_failed_end_is_raised_recorded_and_may_be_repeated(server, owner, factory):
    session = factory()
    server.fail_always("DELETE", fs.status(500, "broken"))
    with pytest.raises(AnchorAPIError, match="broken.*tried 4 times"):
        session.end()
    assert not session.ended
    assert states(owner) == ["open"]
    server.fail_always("DELETE", None)
    session.end()
    assert session.ended
    assert states(owner) == ["ended"]


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


def test_close_keeps_to_its_time(server, owner, factory):
    sessions = [factory(), factory()]
    server.fail_always("DELETE", fs.silent)
    before = time.monotonic()
    assert set(factory.close(0.3)) == set(sessions)
    assert time.monotonic() - before < 8
    assert states(owner) == ["open", "open"]


def test_close_of_an_unused_factory_opens_nothing(owner, factory):
    assert factory.close(1) == {}
    assert not owner.settings.folder.parent.exists()


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
def test_what_cannot_be_sent_is_not_recorded(server, owner, factory, given, kind):
    with pytest.raises(kind):
        factory(**given)
    assert server.requests == []
    assert states(owner) == []


@pytest.mark.parametrize("key", [None, "", "bad\nkey"])
def test_without_a_usable_key_nothing_is_made(server, settings, key):
    owner = Owner(settings._replace(api_key=key))
    with pytest.raises(AnchorConfigError, match="ANCHORBROWSER_API_KEY"):
        owner.create({}, "t")
    assert server.requests == []
    assert not settings.folder.parent.exists()
    owner.close()


def test_without_a_registry_nothing_is_created(server, owner, factory):
    owner.settings.folder.parent.write_text("in the way")
    with pytest.raises(AnchorRegistryError):
        factory()
    assert server.requests == []


def test_without_room_for_the_intent_nothing_is_created(server, owner, factory):
    factory().end()
    journal = owner.settings.folder / JOURNAL
    journal.unlink()
    journal.mkdir()
    with pytest.raises(AnchorRegistryError):
        factory()
    assert server.count("POST") == 1


def test_a_session_whose_id_cannot_be_written_is_ended_at_once(server, owner, factory):
    def break_the_journal(_handler, act):
        (owner.settings.folder / JOURNAL).unlink()
        (owner.settings.folder / JOURNAL).mkdir()
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
from pytest_anchor.errors import AnchorRegistryError
from pytest_anchor.session import Owner
from pytest_anchor.settings import Settings
url, folder, key, room = sys.argv[1:]
owner = Owner(Settings("r1", Path(folder), "main", url, key, False, "", "fail", 5.0, False))
owner.create({}, "t").end()
journal = Path(folder, "journal.jsonl")
size = journal.stat().st_size
intent = len(journal.read_bytes().split(b"\\n")[0]) + 10
resource.setrlimit(resource.RLIMIT_FSIZE, (size + (intent if room == "intent" else 0), resource.RLIM_INFINITY))
try:
    owner.create({}, "t")
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


def test_a_refused_creation_is_settled(server, owner, factory):
    server.fail("POST", fs.status(402))
    with pytest.raises(AnchorAPIError):
        factory()
    assert states(owner) == ["refused"]


@pytest.mark.parametrize("fault", [fs.lost_reset, fs.lost_status(500), fs.lost_body(b"x"), fs.lost_truncated])
def test_a_lost_creation_is_recorded_as_lost(server, owner, factory, fault):
    server.fail("POST", fault)
    with pytest.raises(AnchorLostCreateError) as caught:
        factory()
    record = next(iter(Run(owner.settings.folder, "reader").read().records.values()))
    assert (record.state, record.error) == ("lost", caught.value.fields())
    assert time.time() - record.time < 20
    assert KEY.encode() not in pickle.dumps(caught.value)


# the owner


def test_an_owner_holds_its_lock_from_the_first_session_until_it_closes(owner, factory):
    reader = Run(owner.settings.folder, "reader")
    assert not reader.is_alive("main")
    factory()
    assert reader.is_alive("main")
    assert owner.open()[1] is owner.open()[1]
    owner.close()
    assert not reader.is_alive("main")
    owner.close()


def test_threads_open_an_owner_once(owner):
    barrier = threading.Barrier(4)

    def opened(_):
        barrier.wait(10)
        return owner.open()

    with ThreadPoolExecutor(4) as pool:
        assert len({id(api) for _, api in pool.map(opened, range(4))}) == 1


def test_what_is_to_come_before_a_creation_comes_before_each(server, settings, quick):
    seen = []
    owner = Owner(settings, lambda: seen.append(len(server.requests)))
    owner.open()
    assert seen == []
    owner.create({}, "t").end()
    owner.create({}, "t").end()
    assert seen == [0, 2]
    owner.close()


def test_a_record_tells_the_run_the_place_and_has_a_seal(owner, factory):
    session = factory()
    run, api = owner.open()
    (record,) = run.read().records.values()
    assert (record.run_id, record.place) == ("r1", run.folder.stat().st_ino)
    assert (record.base_url, record.fingerprint) == (api.base_url, api.fingerprint)
    assert record.seal == api.seal(record.nonce, session.id)


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


def test_the_calls_keywords_win_over_the_defaults_and_any_mapping_will_do(server, owner):
    sent = []
    server.fail("POST", lambda h, act: sent.append(int(h.headers["content-length"])) or act())
    defaults = {"session": {"tags": ["a"]}, "browser": {"viewport": {"width": 1}}}
    factory = AnchorSessionFactory(owner, defaults, lambda: "t")
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
