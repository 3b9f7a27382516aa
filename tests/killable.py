"""Processes of a run that create sessions and can be killed, and the broker that they start."""

import signal
import time

from processes import kill

from pytest_anchor.broker.reaper import REAPER_LOG
from pytest_anchor.registry.journal import Run

PROCESS = """
import json, os, sys, threading, time
from pathlib import Path
from pytest_anchor.client import Client
from pytest_anchor.errors import AnchorError
from pytest_anchor.session import AnchorSessionFactory
from pytest_anchor.settings import Settings

client = Client(Settings.of_worker(json.loads(sys.argv[1]), Path()))
factory = AnchorSessionFactory(client, {}, lambda: "t.py::x")
sessions = []

def create():
    try:
        sessions.append(factory())
    except AnchorError as error:
        return f"{type(error).__name__}: {error}"
    return sessions[-1].id

def end():
    return json.dumps([str(one) for one in factory.close(10).values()])

def sweep():
    return json.dumps(client.request("sweep", timeout=60, again=True, has_remote_workers=False, verbose=False))

def goodbye():
    client.request("goodbye", timeout=10)
    return "left"

def umask():
    os.umask(0o777)
    return "done"

def fork():
    child = os.fork()
    if not child:
        os.setsid()
        time.sleep(60)
        os._exit(0)
    return child

print("ready", flush=True)
for line in sys.stdin:
    print(globals()[line.strip()](), flush=True)
"""


class Process:
    """A process of a run that creates sessions, and can be killed."""

    def __init__(self, process):
        self.process = process
        self.pid = process.pid
        assert self.answer() == "ready"

    def ask(self, word):
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def answer(self):
        return self.process.stdout.readline().strip()

    def do(self, word):
        self.ask(word)
        return self.answer()

    def create(self):
        return self.do("create")

    def leave(self):
        """End the sessions, and the part in the run."""
        assert self.do("end") == "[]"
        assert self.do("goodbye") == "left"

    def kill(self):
        """Kill it: when it was dead."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        return time.monotonic()


def kill_broker(brokers):
    """Kill the run's one broker, and return its pid."""
    (pid,) = brokers()
    kill(pid)
    return pid


def log(folder):
    return (folder / REAPER_LOG).read_text()


def states(folder):
    return [record.state for record in Run(folder).read().records.values()]
