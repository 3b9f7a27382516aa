import os
import signal
import threading
import time

import pytest
from processes import script
from real_runs import Suite

from pytest_anchor.plugin.signals import Termination


@pytest.fixture(autouse=True)
def restored():
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def termination():
    termination = Termination(lambda: True)
    yield termination
    termination.undo()


def installed():
    return signal.getsignal(signal.SIGTERM)


def other(_number, _frame):
    pass


def test_sigterm_becomes_ctrl_c(termination):
    termination.catch()
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):  # a second one as well
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


def test_it_is_undone(termination):
    termination.catch()
    assert installed() is not signal.SIG_DFL
    termination.undo()
    assert installed() is signal.SIG_DFL
    termination.undo()  # again does nothing
    assert installed() is signal.SIG_DFL


def test_to_catch_it_twice_is_to_catch_it_once(termination):
    termination.catch()
    first = installed()
    termination.catch()
    assert installed() == first
    termination.undo()
    assert installed() is signal.SIG_DFL


@pytest.mark.parametrize("handler", [signal.SIG_IGN, other], ids=["ignored", "handled"])
def test_who_handles_it_already_goes_on(termination, handler):
    signal.signal(signal.SIGTERM, handler)
    termination.catch()
    assert installed() is handler
    termination.undo()
    assert installed() is handler


def test_who_takes_it_over_keeps_it(termination):
    termination.catch()
    signal.signal(signal.SIGTERM, other)
    termination.undo()
    assert installed() is other


def test_another_thread_installs_nothing(termination):
    errors = []

    def catch():
        try:
            termination.catch()
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=catch)
    thread.start()
    thread.join(10)
    assert installed() is signal.SIG_DFL
    assert errors == []
    termination.catch()  # the main thread still can
    assert installed() is not signal.SIG_DFL


def test_a_forked_child_dies_of_it_as_usual():
    code = """
import os, signal, time
from pytest_anchor.plugin.signals import Termination
Termination(lambda: True).catch()
child = os.fork()
if not child:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    finally:
        os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
except KeyboardInterrupt:
    print("interrupted")
"""
    with script(code) as process:
        assert process.communicate(timeout=15)[0] == "interrupted\n"
        assert process.returncode == 0


def test_while_there_is_nothing_to_tear_down_it_does_what_it_always_does():
    code = """
import os, signal, time
from pytest_anchor.plugin.signals import Termination
Termination(lambda: False).catch()
assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(5)
"""
    with script(code) as process:
        assert process.wait(15) == -signal.SIGTERM


SUITE = """
import signal, threading

def installed():
    return signal.getsignal(signal.SIGTERM)

def test_before_the_first_creation():
    assert installed() is signal.SIG_DFL

def test_a_factory_alone_installs_nothing(anchor_session):
    assert installed() is signal.SIG_DFL

def test_a_creation_in_another_thread_installs_nothing(anchor_session):
    thread = threading.Thread(target=anchor_session)
    thread.start()
    thread.join()
    assert installed() is signal.SIG_DFL

def test_the_first_creation_in_the_main_thread(anchor_session):
    anchor_session()
    assert "Termination" in repr(installed())
"""

AT_THE_END = """
import pytest, signal

@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    print("at the end:", repr(signal.getsignal(signal.SIGTERM)))
"""


@pytest.mark.slow
def test_a_run_catches_it_from_its_first_creation_to_its_end(server, tmp_path):
    suite = Suite(tmp_path, server)
    suite.write(SUITE)
    suite.write(AT_THE_END, "conftest.py")
    run = suite.run("-s")
    assert "4 passed" in run.out
    assert "at the end: <Handlers.SIG_DFL: 0>" in run.out
