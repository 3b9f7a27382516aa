"""What a broker inherits of the process that starts it, and what that process may do to itself. Real brokers."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from fault_server import KEY, FaultServer
from processes import CHECKOUT, script
from real_brokers import PREPARE, broker, factory, run_script
from real_runs import until

from pytest_anchor.errors import AnchorError

pytestmark = pytest.mark.usefixtures("started_brokers")

# what the broker inherits


def broker_environment(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def test_the_key_is_in_its_input_only_and_nothing_of_the_test_in_its_environment(
    make_client, run_settings, monkeypatch
):
    for name in ("ANCHORBROWSER_API_KEY", "ANCHOR_API_KEY", "COVERAGE_PROCESS_CONFIG", "PYTHONSTARTUP"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("UNRELATED", "kept")
    factory(make_client())()
    pid = broker(run_settings)
    environment = broker_environment(pid)
    assert environment["UNRELATED"] == "kept"
    left_out = {"PYTEST_CURRENT_TEST", "PYTHONSTARTUP", "COVERAGE_PROCESS_CONFIG"}
    assert not left_out & environment.keys()
    assert not [name for name in environment if name.endswith("API_KEY")]
    assert "PYTEST_CURRENT_TEST" in os.environ
    proc = Path(f"/proc/{pid}")
    assert KEY.encode() not in (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
    assert (proc / "fd" / "0").readlink() == Path("/dev/null")
    for file in Path(run_settings.socket_folder).rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()


def test_it_is_a_process_of_its_own(make_client, run_settings, tmp_path):
    with (tmp_path / "inherited").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        factory(make_client())()
        pid = broker(run_settings)
        links = {int(fd.name): str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    assert str(tmp_path / "inherited") not in links.values()
    assert links[1] == links[2] == f"{run_settings.socket_folder}/log"
    assert os.getsid(pid) == os.getpgid(pid) == pid != os.getpgid(0)
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    assert factory(make_client())()


def test_what_is_relative_is_handed_over_as_absolute(make_client, run_settings, monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"mine::{CHECKOUT}")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "NETRC"):
        monkeypatch.setenv(name, "mine")
    client = make_client()
    monkeypatch.chdir("/")
    factory(client)()
    pid = broker(run_settings)
    environment = broker_environment(pid)
    assert environment["PYTHONPATH"] == f"{tmp_path}/mine:{CHECKOUT}"
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "NETRC"):
        assert environment[name] == f"{tmp_path}/mine"


def test_the_path_of_modules_is_the_one_of_the_start_as_absolute(make_client, run_settings, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    many = [f"/nowhere/{number:0100}" for number in range(3000)]  # more than a command line, or a pipe, takes at once
    monkeypatch.setattr(sys, "path", ["", "mine", *many, *sys.path, "odd\udcff"])
    client = make_client()
    monkeypatch.chdir("/")
    sys.path[:] = ["/changed"]
    spy = tmp_path / "python"
    spy.write_text(f"#!/bin/sh\ncat > {tmp_path}/input\nexit 1\n")
    spy.chmod(0o755)
    right, client._launcher.executable = client._launcher.executable, str(spy)
    with pytest.raises(AnchorError, match="did not start"):
        factory(client)()
    paths = os.fsdecode((tmp_path / "input").read_bytes().partition(b"\n")[0]).split("\0")
    assert paths[paths.index(f"{tmp_path}/mine") + 1] == many[0]
    assert paths[-1] == f"{tmp_path}/odd\udcff"
    assert not {"", str(tmp_path), "/changed"} & set(paths), "the working directory is not what is imported from"
    client._launcher.executable = right
    assert factory(client)()


def test_a_plugin_that_only_this_process_can_reach_is_reached_by_the_broker(
    server: FaultServer, run_settings, tmp_path
):
    (tmp_path / "elsewhere").symlink_to(CHECKOUT)
    code = "print(create().id); client.leave()"
    values = {**run_settings._asdict(), "folder": str(run_settings.folder), "main_pid": 0}
    reach = f"import sys; sys.path.append({str(tmp_path / 'elsewhere')!r})\n"
    with script(reach + PREPARE + code, json.dumps(values), PYTHONPATH="") as process:
        out, _ = process.communicate(timeout=60)
    assert out.strip() in server.sessions


def test_a_sitecustomize_that_prints_is_no_answer(
    server: FaultServer, make_client, run_settings, monkeypatch, tmp_path
):
    (tmp_path / "sitecustomize.py").write_text("import sys\nprint('{}\\nready' * 1000)\nprint('oh', file=sys.stderr)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{CHECKOUT}")
    assert factory(make_client())().id in server.alive


# whatever the test process has done to itself


def test_it_works_whatever_has_become_of_the_modules_of_the_test_process(server: FaultServer, run_settings):
    code = """
import builtins, pathlib, select, signal, socket, subprocess, threading, time
from unittest import mock

def broken(*_args, **_kwargs):
    raise AssertionError("a test has patched it")

leave, write = os._exit, os.write
client.request("recover", timeout=5) if "used" in sys.argv else None
sys.path[:], sys.executable = [], "/nowhere"
os.environ.clear()
for name in ("requests", "filelock", "json", "socket"):
    sys.modules[name] = None
real = {json: ["dumps", "loads", "JSONEncoder", "JSONDecoder"], time: ["time", "monotonic", "sleep"],
        socket: ["socket", "create_connection"], subprocess: ["Popen", "run"], select: ["select", "poll"],
        os: ["open", "mkdir", "stat", "read", "write", "rename", "pipe", "fork", "posix_spawn", "getpid", "urandom"],
        builtins: ["open"], threading: ["Thread", "get_ident", "Lock"]}
for module, names in real.items():
    for name in names:
        setattr(module, name, broken)
session = create()
write(1, session.id.encode() + b"\\n")
session.end()
write(1, b"ended\\n" if session.ended else b"open\\n")
client.leave()
leave(0)
"""
    with run_script(run_settings, code) as process:
        out, _ = process.communicate(timeout=60)
    session, ended = out.split()
    assert list(server.sessions) == [session]
    assert ended == "ended"
    assert server.alive == []


def test_it_works_under_a_umask_that_forbids_everything(server: FaultServer, run_settings):
    code = """
os.umask(0o777)
print(create().id)
folder = settings.socket_folder
print(*(oct(os.stat(f"{folder}/{name}").st_mode & 0o777) for name in ("", "0", "0/socket", "log")))
os.umask(0o022)
client.leave()
"""
    with run_script(run_settings, code) as process:
        session, modes = process.communicate(timeout=60)[0].splitlines()
    assert session in server.sessions
    assert modes.split() == ["0o700", "0o700", "0o600", "0o600"]


def test_open_files_at_their_limit(server: FaultServer, run_settings):
    code = """
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

def limit():
    least = max(map(int, os.listdir("/proc/self/fd"))) + 1
    fd = os.open("/dev/null", 0)
    os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd, hard))

limit()
for _ in range(2):
    try:
        create()
    except AnchorError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
create().end()
limit()
create().end()
print("created")
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
client.leave()
"""
    with run_script(run_settings, code) as process:
        *errors, created = process.communicate(timeout=60)[0].splitlines()
    assert len(errors) == 2
    assert all("Too many open files" in error and "the next request tries again" in error for error in errors)
    assert created == "created"
    assert server.count("DELETE") == 2


def test_the_broker_may_open_more_than_the_test_process(run_settings):
    code = """
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
create()
print(hard, flush=True)
sys.stdin.readline()
client.leave()
"""
    with run_script(run_settings, code) as process:
        hard = process.stdout.readline().strip()
        pid = broker(run_settings)
        (line,) = [one for one in Path(f"/proc/{pid}/limits").read_text().splitlines() if "open files" in one]
        assert line.split()[3:5] == [hard, hard]
        process.communicate("\n", timeout=30)


# forks


def test_a_forked_child_has_connections_and_sessions_of_its_own(server: FaultServer, run_settings):
    code = """
mine = create()
if not (child := os.fork()):
    assert not client.is_connected
    print(create().id, flush=True)
    sys.stdin.readline()
    os._exit(0)
print(mine.id, flush=True)
assert os.waitpid(child, 0)[1] == 0
print("gone", flush=True)
sys.stdin.readline()
assert not mine.ended
mine.end()
client.leave()
print("ended", flush=True)
"""
    with run_script(run_settings, code) as process:
        lines = {process.stdout.readline().strip() for _ in range(2)}
        assert lines == set(server.alive)
        (first, second) = server.sessions
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "gone\n"
        until(lambda: len(server.alive) == 1)  # the child's is ended, as it is over
        assert server.alive in ([first], [second])
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ended\n"
        assert process.wait(30) == 0
    assert server.alive == []
    assert server.count("DELETE") == 2


def test_a_child_that_a_thread_forks_before_any_session_knows_that_it_waits_for_itself(server, run_settings):
    code = """
import threading
def fork():
    if not os.fork():
        create()
        print(client.is_self_blocked, flush=True)
        os._exit(0)
threading.Thread(target=fork).start()
os.wait()
"""
    with run_script(run_settings, code) as process:
        assert process.stdout.readline() == "True\n"
        assert process.wait(30) == 0


def test_a_forked_child_that_lives_on_does_not_keep_its_dead_parents_sessions(server: FaultServer, run_settings):
    code = """
create()
if not (child := os.fork()):
    sys.stdin.readline()
    os._exit(0)
print("created", flush=True)
os.kill(os.getpid(), 9)
"""
    with run_script(run_settings, code, reaper=True) as process:
        assert process.stdout.readline() == "created\n"
        until(lambda: not server.alive)
        process.stdin.close()
