"""Real brokers, and processes of their runs."""

from __future__ import annotations

import json
from pathlib import Path

from processes import script
from real_runs import processes_in, until

from pytest_anchor.client import Client
from pytest_anchor.registry.journal import Run
from pytest_anchor.session import AnchorSessionFactory
from pytest_anchor.settings import Settings


def factory(client: Client, test: str = "t.py::x") -> AnchorSessionFactory:
    return AnchorSessionFactory(client, {}, lambda: test)


def generations(settings: Settings) -> list[str]:
    return sorted(one.name for one in Path(settings.socket_folder).iterdir() if one.is_dir())


def states(settings: Settings) -> list[str]:
    return [record.state for record in Run(settings.folder).read().records.values()]


def brokers(settings: Settings) -> list[int]:
    """The pids of the run's brokers."""
    return [pid for pid, command in processes_in(settings.folder).items() if "pytest_anchor.broker" in command]


def broker(settings: Settings) -> int:
    """The pid of the run's only broker."""
    (pid,) = until(lambda: len(found := brokers(settings)) == 1 and found)
    return pid


PREPARE = """
import json, os, sys
from pathlib import Path
from pytest_anchor.client import Client
from pytest_anchor.errors import AnchorError
from pytest_anchor.session import AnchorSessionFactory
from pytest_anchor.settings import Settings
values = json.loads(sys.argv[1])
settings = Settings(**{**values, "folder": Path(values["folder"])})
client = Client(settings)
create = AnchorSessionFactory(client, {}, lambda: "t")
"""


def run_script(settings: Settings, code: str, **changes: object):
    """A process of the run: its main one, unless it is called otherwise."""
    values = {**settings._asdict(), "folder": str(settings.folder), "main_pid": 0, **changes}
    return script(PREPARE + code, json.dumps(values))
