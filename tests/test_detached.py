import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from fault_server import KEY
from processes import children, descriptors, is_alive, status
from real_runs import until

from pytest_anchor import detached
from pytest_anchor.detached import StartError

LIVES = """
import os, sys
told = sys.stdin.readline()
print(os.getpid(), flush=True)
print("a helper's error", file=sys.stderr, flush=True)
with open(sys.argv[1], "w") as file:
    file.write(told + sys.stdin.read())
while not os.path.exists(sys.argv[1] + ".stop"):
    __import__("time").sleep(0.01)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a helper with this code; whatever it starts is killed at the end."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = set(children(os.getpid()))

    def start(code, *arguments, secret="secret", timeout=10.0):
        (tmp_path / "helper.py").write_text(code)
        return detached.spawn_helper(["helper", *map(str, arguments)], secret, tmp_path / "log", timeout=timeout)

    yield start
    for child in set(children(os.getpid())) - before:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.kill(child, signal.SIGKILL)
    until(lambda: set(children(os.getpid())) <= before)


@pytest.fixture
def helper(start, tmp_path):
    """A helper that runs: its pid."""
    return int(start(LIVES, tmp_path / "told"))


def proc(pid, name):
    return Path(f"/proc/{pid}/{name}").read_bytes()


def test_the_first_line_comes_back_and_the_helper_goes_on(helper):
    assert is_alive(helper)
    assert helper in children(os.getpid())


def test_the_secret_is_a_line_of_its_input_and_all_of_it(helper, tmp_path):
    until(lambda: (tmp_path / "told").exists() and (tmp_path / "told").read_text())
    assert (tmp_path / "told").read_text() == "secret\n"


def test_its_errors_go_to_the_end_of_the_log(start, tmp_path):
    (tmp_path / "log").write_text("before\n")
    start(LIVES, tmp_path / "told")
    until(lambda: (tmp_path / "log").read_text() == "before\na helper's error\n")


def test_it_is_in_a_session_and_a_group_of_its_own(helper):
    assert os.getsid(helper) == os.getpgid(helper) == helper != os.getpgid(0)


def test_no_key_is_in_its_arguments_or_environment(start, tmp_path, monkeypatch):
    for name in ("ANCHORBROWSER_API_KEY", "ANCHOR_API_KEY"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("UNRELATED", "kept")
    helper = int(start(LIVES, tmp_path / "told", secret=KEY))
    environment = proc(helper, "environ")
    assert KEY.encode() not in proc(helper, "cmdline") + environment
    assert b"API_KEY" not in environment
    assert b"UNRELATED=kept" in environment
    assert os.environ["ANCHOR_API_KEY"] == KEY


def test_nothing_of_ours_is_open_in_it(start, tmp_path):
    with (tmp_path / "ours").open("w"):
        helper = int(start(LIVES, tmp_path / "told"))
        links = [str(fd.readlink()) for fd in Path(f"/proc/{helper}/fd").iterdir()]
    assert str(tmp_path / "ours") not in links
    assert str(tmp_path / "log") in links


def test_it_leaves_no_zombie(helper, tmp_path):
    (tmp_path / "told.stop").touch()
    until(lambda: not status(helper))
    assert helper not in children(os.getpid())


def test_a_killed_helper_leaves_no_zombie(helper):
    os.kill(helper, signal.SIGKILL)
    until(lambda: not status(helper))


def test_what_lies_in_the_working_directory_is_not_imported(start, tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "json.py").write_text("print('hijacked', flush=True)")
    monkeypatch.chdir(tmp_path / "cwd")
    assert start("import json\nprint(json.__file__)") != "hijacked"


def test_it_finds_this_package_as_we_do(start):
    assert start("import pytest_anchor\nprint(pytest_anchor.__file__)") == str(
        Path(detached.__file__).parent / "__init__.py"
    )


# it does not start


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('no browser here')", "no browser here"),
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
        ("import sys; sys.stdin.readline(); sys.exit('after the secret')", "after the secret"),
        ("pass", "it did not say why"),
        ("print()", "it did not say why"),
        ("import sys; sys.stderr.buffer.write(b'caf\\xe9')", "caf\N{REPLACEMENT CHARACTER}"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "it did not say why"),
    ],
)
def test_a_helper_that_dies_is_an_error_with_its_words(start, code, said):
    before = time.monotonic()
    with pytest.raises(StartError) as caught:
        start(code)
    assert str(caught.value).rpartition("\n")[2] == said
    assert time.monotonic() - before < 9


def test_a_helper_that_says_nothing_in_time_is_killed(start, tmp_path):
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    before = time.monotonic()
    with pytest.raises(StartError, match="it did not say why"):
        start(code, timeout=4.0)  # by then it has begun, on a busy machine, too
    assert 4.0 <= time.monotonic() - before < 40
    assert not status(int((tmp_path / "pid").read_text()))


def test_a_failed_start_leaves_nothing_behind(start):
    threads, opened = threading.active_count(), descriptors()
    for _ in range(3):
        with pytest.raises(StartError):
            start("pass")
    until(lambda: threading.active_count() <= threads)
    assert descriptors() <= opened


@pytest.mark.parametrize("executable", ["/nowhere/python", ""])
def test_without_a_python_there_is_no_helper(start, monkeypatch, executable):
    monkeypatch.setattr("sys.executable", executable)
    with pytest.raises(StartError):
        start("print(1)")


def test_a_log_that_cannot_be_written_is_an_error(start, tmp_path):
    (tmp_path / "log").mkdir()
    with pytest.raises(StartError, match="directory"):
        start("print(1)")
