from pathlib import Path

import pytest
from fault_server import FaultServer
from real_runs import Suite


@pytest.fixture
def suite(tmp_path: Path, server: FaultServer) -> Suite:
    return Suite(tmp_path, server)
