import json
import pickle
import re
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from settings_for import settings_for

from pytest_anchor import settings as settings_module
from pytest_anchor.errors import AnchorConfigError
from pytest_anchor.settings import (
    KEY_VARIABLES,
    MAX_SOCKET_NAME,
    MAX_SOCKET_PATH,
    Settings,
    check_base_url,
    check_choice,
    check_key,
    check_max_sessions,
    check_number,
    check_run_id,
    check_seconds,
    ci_run_id,
    key_from_environment,
    new_invocation,
    socket_folder,
)

SECRET = "sk-SECRET-99"


def some(**changes):
    values = {
        "base_url": "https://api.example",
        "api_key": SECRET,
        "socket_folder": "/tmp/pytest-anchor-r",
        "main_pid": 7,
    }
    return settings_for(Path("/x/r"), **{**values, **changes})


@pytest.mark.parametrize("name", ["a/b", "../x", "x" * 500, "gw é", "a\0b"])
def test_a_workers_odd_name_is_made_fit_for_a_file(name):
    owner = some().for_worker(name)["owner"]
    assert re.fullmatch("[A-Za-z0-9._-]{1,60}", owner)


def test_frozen_and_its_repr_hides_the_key():
    settings = some()
    assert SECRET not in repr(settings)
    assert "api.example" in repr(settings)
    with pytest.raises(AttributeError):
        settings.owner = "gw0"  # type: ignore[misc]


def test_a_worker_gets_the_same_as_plain_builtins_without_the_key(monkeypatch):
    values = some().for_worker("gw1")
    assert json.loads(json.dumps(values)) == values
    assert SECRET not in repr(values)
    assert SECRET.encode() not in pickle.dumps(values)
    monkeypatch.setenv("ANCHOR_API_KEY", "of-the-worker")
    assert Settings.of_worker(values, Path("/elsewhere")) == some(owner="gw1", api_key="of-the-worker")


def test_a_worker_that_sees_another_disk_keeps_a_registry_of_its_own(monkeypatch):
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setenv("ANCHOR_API_KEY", SECRET)
    values = json.loads(json.dumps(some().for_worker("gw1", shares_disk=False)))
    assert "/x" not in json.dumps(values)
    own = some(owner="gw1", folder=Path("/its/place/.pytest_anchor/r"), own_registry=True, main_pid=0)
    made = Settings.of_worker(values, Path("/its/place"))
    assert made._replace(socket_folder="") == own._replace(socket_folder="")
    assert "/tmp/pytest-anchor-r" not in json.dumps(values), "a broker of that machine"


def test_a_worker_keeps_its_evidence_where_it_can(monkeypatch):
    settings = some(output="/x/results")
    assert Settings.of_worker(settings.for_worker("gw1"), Path("/its/place")).output == "/x/results"
    elsewhere = Settings.of_worker(settings.for_worker("gw1", shares_disk=False), Path("/its/place"))
    assert elsewhere.output == "/its/place/results"


def test_workers_on_one_other_machine_share_its_broker_if_they_share_their_disk(monkeypatch):
    monkeypatch.delenv("TMPDIR", raising=False)
    values = some().for_worker("gw1", shares_disk=False)
    one, two, elsewhere = (Settings.of_worker(values, Path(path)).socket_folder for path in ("/a", "/a", "/b"))
    assert one == two != elsewhere
    assert one.startswith("/tmp/pytest-anchor-r-")


def test_a_local_key_crosses_to_the_worker(monkeypatch):
    monkeypatch.setenv("ANCHORBROWSER_API_KEY", "real")
    settings = some(local=True, base_url="", api_key="local-1")
    assert Settings.of_worker(settings.for_worker("gw0"), Path("/elsewhere")) == settings._replace(owner="gw0")


# the folder of the sockets


NAME = "0123456789abcdef"
ROOM = MAX_SOCKET_PATH - MAX_SOCKET_NAME - len(f"/pytest-anchor-{NAME}")  # for the folder of temporary files


@pytest.fixture
def short():
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def test_a_socket_fits_into_the_longest_folder_that_is_used(short, monkeypatch):
    folder = short / ("x" * (ROOM - len(str(short)) - 1))
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    assert socket_folder(NAME) == f"{folder}/pytest-anchor-{NAME}"
    path = Path(f"{socket_folder(NAME)}/1234567.0123456789ab/socket")
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def test_a_folder_that_is_too_long_or_not_there_is_not_used(short, monkeypatch):
    folder = short / ("x" * (ROOM - len(str(short))))
    for _ in range(2):
        monkeypatch.setenv("TMPDIR", str(folder))
        assert socket_folder(NAME) == f"/tmp/pytest-anchor-{NAME}"
        folder.mkdir(exist_ok=True)


def test_a_name_that_is_too_long_for_any_folder_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(AnchorConfigError, match="TMPDIR is '/.*, too long for the path of a socket"):
        socket_folder("x" * 100)


def test_a_relative_folder_is_made_absolute(short, monkeypatch):
    monkeypatch.chdir(short)
    monkeypatch.setenv("TMPDIR", ".")
    assert socket_folder("n") == f"{short}/pytest-anchor-n"


def test_where_there_are_no_sockets_there_is_no_folder_and_no_trouble(monkeypatch):
    monkeypatch.setattr(settings_module, "HAS_SOCKETS", False)
    assert socket_folder("x" * 200) == ""


def test_names_of_invocations_are_fresh():
    ids = {new_invocation() for _ in range(50)}
    assert len(ids) == 50
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in ids)


# run ids


@pytest.mark.parametrize(
    ("environ", "run_id"),
    [
        ({}, ""),
        ({"CI": "true"}, ""),
        ({"GITHUB_RUN_ID": "12", "GITHUB_RUN_ATTEMPT": "3"}, "github-12"),
        ({"GITHUB_RUN_ID": "12"}, "github-12"),
        ({"GITHUB_RUN_ATTEMPT": "3"}, ""),
        ({"GITHUB_RUN_ID": ""}, ""),
        ({"CI_PIPELINE_ID": "77", "CI_JOB_ID": "1"}, "gitlab-77"),
        ({"BUILDKITE_BUILD_ID": "0187-ab"}, "buildkite-0187-ab"),
        ({"CIRCLE_WORKFLOW_ID": "f00"}, "circleci-f00"),
        ({"BUILD_BUILDID": "9", "SYSTEM_JOBATTEMPT": "1"}, "azure-9"),
        ({"BUILD_TAG": "jenkins-a/b c,d-4"}, "jenkins-jenkins-a-b-c-d-4"),
        ({"BUILD_TAG": "\x1b[2J,all\n"}, "jenkins--2J-all-"),
        ({"BUILD_TAG": "x" * 500}, "jenkins-" + "x" * 75 + "-dc2bdc98cb3b5870"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_shards_of_a_ci_run_share_its_id(environ, run_id):
    assert ci_run_id(environ) == run_id
    assert not run_id or check_run_id(run_id) == run_id


def test_a_long_name_that_is_cut_keeps_the_number_at_its_end_apart():
    one, other = (ci_run_id({"BUILD_TAG": f"jenkins-{'folder-' * 30}{number}"}) for number in (1, 2))
    assert one != other


@pytest.mark.parametrize("value", ["r", "github-12", "A_b.c-9", "x" * 100])
def test_a_good_run_id_is_returned(value):
    assert check_run_id(value) == value


@pytest.mark.parametrize("value", ["", "a,b", "a b", "a/b", "a=b", "é", "r\n", "\x1b[2J", "x" * 101])
def test_a_run_id_that_cannot_be_part_of_a_tag_is_refused_in_a_printable_sentence(value):
    with pytest.raises(AnchorConfigError, match="must be 1 to 100 letters, digits, dots") as caught:
        check_run_id(value)
    assert str(caught.value).isprintable()


# the key


def test_the_key_is_read_from_the_first_variable_that_holds_one(monkeypatch):
    assert key_from_environment() is None
    monkeypatch.setenv("ANCHOR_API_KEY", "second")
    assert key_from_environment() == "second"
    monkeypatch.setenv("ANCHORBROWSER_API_KEY", "")
    assert key_from_environment() == "second"
    monkeypatch.setenv("ANCHORBROWSER_API_KEY", "first")
    assert key_from_environment() == "first"


def test_a_good_key_is_returned():
    assert check_key(SECRET) == SECRET


@pytest.mark.parametrize("key", [None, ""])
def test_no_key_names_the_variables_and_the_way_without(key):
    with pytest.raises(AnchorConfigError) as caught:
        check_key(key)
    assert all(name in str(caught.value) for name in (*KEY_VARIABLES, "--anchor-local"))


@pytest.mark.parametrize("key", ["{}\n", " {}", "{} ", "{}\r\nx: y", "é{}", "\x00{}", "\t{}", "{}\x7f"])
def test_a_key_that_is_no_header_value_is_refused_and_not_shown(key):
    with pytest.raises(AnchorConfigError) as caught:
        check_key(key.format(SECRET))
    assert SECRET not in str(caught.value)
    assert "--anchor-local" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("https://api.anchorbrowser.io", "https://api.anchorbrowser.io"),
        ("https://proxy.example:8443/anchor/", "https://proxy.example:8443/anchor"),
        ("http://localhost:8000/", "http://localhost:8000"),
        ("http://LOCALHOST", "http://LOCALHOST"),
        ("http://127.0.0.1:1", "http://127.0.0.1:1"),
        ("http://127.255.255.254", "http://127.255.255.254"),
        ("http://[::1]:9/x//", "http://[::1]:9/x"),
    ],
)
def test_base_urls_that_may_be_used(value, kept):
    assert check_base_url(value) == kept


@pytest.mark.parametrize(
    "value",
    [
        "",
        "api.anchorbrowser.io",
        "ftp://x.example",
        "file:///etc/passwd",
        "https://",
        "https:///path",
        "https://x.example:port",
        "https://x.example:99999",
        "https://[::1",
        "https://x.example/a b",
        "https://x.example/\n",
        "https://x.example/\x1b[2J",
    ],
)
def test_what_is_no_url_is_refused_in_a_printable_sentence(value):
    with pytest.raises(AnchorConfigError, match="is not an http:// or https:// URL; the default is") as caught:
        check_base_url(value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "value",
    [
        "https://user:pass@x.example",
        "https://user@x.example",
        "https://@x.example",
        "https://x.example/?a=1",
        "https://x.example#f",
        "https://x.example?",
        "https://x.example#",
    ],
)
def test_a_base_url_has_no_user_query_or_fragment(value):
    with pytest.raises(AnchorConfigError) as caught:
        check_base_url(value)
    assert "pass" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "http://api.anchorbrowser.io",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://127.0.0",
        "http://127.0.0.256",
        "http://127.0.0.x",
        "http://128.0.0.1",
        "http://0.0.0.0",
        "http://127.0.0.١",
        "http://10.0.0.1",
        "http://[::2]",
    ],
)
def test_the_key_does_not_travel_in_the_clear(value):
    with pytest.raises(AnchorConfigError):
        check_base_url(value)


@pytest.mark.parametrize(("value", "seconds"), [("1", 1.0), ("0.5", 0.5), ("999999", 999999.0), ("1e3", 1000.0)])
def test_seconds(value, seconds):
    assert check_seconds("--x", value) == seconds


@pytest.mark.parametrize("value", ["", "0", "-1", "nan", "inf", "1e6", "soon", "1s"])
def test_what_is_no_number_of_seconds_is_refused(value):
    with pytest.raises(AnchorConfigError, match="--x takes a number of seconds above 0, not"):
        check_seconds("--x", value)


@pytest.mark.parametrize(("value", "number"), [("0", 0), ("7", 7), ("007", 7)])
def test_number(value, number):
    assert check_number("--x", value, 0, 7) == number


@pytest.mark.parametrize("value", ["", "-1", "8", "1.0", "1e1", " 1", "٣", "9" * 5000, "one", "\x1b[2J"])
def test_what_is_no_whole_number_or_too_large_is_refused(value):
    with pytest.raises(AnchorConfigError, match="--x takes a whole number from 0 to 7, not") as caught:
        check_number("--x", value, 0, 7)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("value", "cap"), [("auto", None), ("off", 0), ("1", 1), ("200", 200)])
def test_max_sessions(value, cap):
    assert check_max_sessions("--x", value) == cap


@pytest.mark.parametrize("value", ["", "0", "-1", "AUTO", "on", "1.5", "None", "9" * 5000, "\x1b[2J"])
def test_what_is_no_cap_is_refused(value):
    with pytest.raises(AnchorConfigError, match="--x takes auto, off or a whole number above 0, not") as caught:
        check_max_sessions("--x", value)
    assert str(caught.value).isprintable()


def test_choice():
    assert check_choice("--x", "warn", ("fail", "warn")) == "warn"
    with pytest.raises(AnchorConfigError, match="--x takes fail or warn, not 'maybe'"):
        check_choice("--x", "maybe", ("fail", "warn"))
