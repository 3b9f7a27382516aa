"""Ports on which nothing listens, and nothing comes to listen by chance."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

_GIVEN = Path("/proc/sys/net/ipv4/ip_local_port_range")  # those that the kernel gives to who asks for any


def unused_port() -> int:
    """A port of 127.0.0.1 that is free, and stays so until somebody asks for it by its number."""
    first = int(_GIVEN.read_text().split()[0]) if _GIVEN.exists() else 49152
    while True:
        port = secrets.choice(range(max(1024, first - 20_000), first) or range(20_000, 30_000))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
