"""Runs on several machines that share one account's limits, without their brokers."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from pytest_anchor.budget.admission import Limits
from pytest_anchor.budget.file_store import FileStore
from pytest_anchor.budget.holders import SlotHolders
from pytest_anchor.budget.leases import Member
from pytest_anchor.budget.shared_store import SharedStore, verified
from pytest_anchor.budget.state import State
from pytest_anchor.registry.journal import Run


def sign(*words: str) -> str:
    return sha256("\n".join(("the key", *words)).encode()).hexdigest()[:32]


class Machines:
    """Each run has a machine, a registry and a broker of its own."""

    def __init__(self, folder: Path, server: object, lease: float = 30.0) -> None:
        self.folder = folder
        self.server = server
        self.lease = lease
        self.stores: dict[str, SharedStore] = {}
        self._runs: list[Run] = []

    def store(self, run: str) -> SharedStore:
        if run not in self.stores:
            folder = self.folder / f"machine-{run}" / run
            self._runs.append(Run(folder))
            self._runs[-1].join()
            member = Member(run, f"id-{run}", f"machine-{run}", "", self.lease)
            self.stores[run] = SharedStore(self.server, FileStore(folder.parent, "a", run, ""), member, sign)
        return self.stores[run]

    def limits(self, run: str, owner: str = "main", cap: int = 0, timeout: float = 30.0) -> Limits:
        store = self.store(run)
        holders = SlotHolders(self.folder / f"machine-{run}" / run, owner, "http://b")
        return Limits(store, holders, cap=cap, timeout=timeout)

    @property
    def state(self) -> State:
        return verified(self.server.value, sign)

    def close(self) -> None:
        for store in self.stores.values():
            store.close()
        for run in self._runs:
            run.leave()
