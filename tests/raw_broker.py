"""A broker as a thread of the tests' process, and raw connections to it."""

import json
import os
import shutil
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

from pytest_anchor.broker.processes import Process
from pytest_anchor.broker.server import Server
from pytest_anchor.registry.journal import Run
from pytest_anchor.settings import socket_identity

CREATE = {"verb": "create", "config": {}, "test": "t.py::x", "is_self_blocked": False}
ACK = {"verb": "ack"}
DEADLINE = 30.0  # seconds


class Peer:
    """A connection to the broker."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE)
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise
        self.file = self.socket.makefile("rb")

    def send(self, message):
        self.socket.sendall(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")

    def receive(self):
        """The next message, ``None`` where the broker has closed the connection."""
        line = self.file.readline()
        return json.loads(line) if line else None

    def ask(self, **message):
        """The answer to a message, and the notes before it."""
        self.send(message)
        notes = []
        while "note" in (answer := self.receive()):
            notes.append(answer["note"])
        return answer, notes

    def create(self, **changes):
        answer, _ = self.ask(**{**CREATE, **changes})
        if "ack" in answer:
            self.send(ACK)
        return answer

    def close(self):
        self.file.close()
        self.socket.close()


class Served:
    """A broker in a thread of this process."""

    def __init__(self, settings):
        self.settings = settings
        self.folder = Path(settings.socket_folder, "0")
        self.folder.parent.mkdir(mode=0o700)
        self.folder.mkdir(mode=0o700)
        self.path = str(self.folder / "socket")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.server = Server(settings, self.listener, 0, socket_identity((self.folder / "socket").stat()))
        self.thread = threading.Thread(
            target=self.server.serve, args=(Process("main", os.getpid()),), name="served", daemon=True
        )
        self.thread.start()
        self.names = {"main"}
        self.peers = ExitStack()

    @property
    def broker(self):
        return self.server._broker

    def peer(self):
        """A connection that has not said whose it is."""
        peer = Peer(self.path)
        self.peers.callback(peer.close)
        return peer

    def connect(self, name="main"):
        peer = self.peer()
        peer.send({"verb": "hello", "owner": name, "pid": os.getpid()})
        assert peer.receive() == {"ready": True}
        self.names.add(name)
        return peer

    def leave(self, name):
        """Say goodbye."""
        if name in self.names:
            self.connect(name).ask(verb="goodbye", timeout=5)
            self.names.discard(name)

    def end(self):
        """See to it that nothing of it is left."""
        for name in sorted(self.names):
            self.leave(name)
        self.thread.join(DEADLINE)
        self.peers.close()
        shutil.rmtree(self.settings.socket_folder, ignore_errors=True)
        assert not self.thread.is_alive()

    @property
    def states(self):
        """The states of what is on record."""
        return [record.state for record in Run(self.settings.folder).read().records.values()]
