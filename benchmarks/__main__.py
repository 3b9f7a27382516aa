"""`python benchmarks [NAME…]`: every figure of this project, as a Markdown table."""

from __future__ import annotations

import importlib
import os
import platform
import sys

NAMES = (
    "unused",
    "create_end",
    "start",
    "journal",
    "limits",
    "suite",
    "sweep",
    "pace",
    "machines",
    "scale",
    "broker",
    "evidence",
    "forwarding",
    "playwright",
    "report",
)
MODULES = {"playwright": "playwright_suite"}  # a module of its name would hide the package


def main(names: list[str]) -> None:
    """Run the benchmarks named, or all."""
    print(f"Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} CPUs\n")
    print("| figure | measured | aim | in seconds |\n|---|---|---|---|")
    for name in names or NAMES:
        for figure in importlib.import_module(MODULES.get(name, name)).figures():
            print(f"| {figure.name} | {figure.value} | {figure.aim} | {figure.detail} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
