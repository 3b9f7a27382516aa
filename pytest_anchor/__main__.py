"""The command line for what lies outside a run: ``python -m pytest_anchor``."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from .errors import AnchorError
from .reporting.progress import write
from .settings import (
    BASE_URL_VARIABLE,
    DEFAULT_BASE_URL,
    KEY_VARIABLES,
    REGISTRY_NAME,
    SHARED_LIMITS_VARIABLE,
    SWEEP_TIMEOUT,
)

INTERRUPTED = 130  # as a shell has it for a process that Ctrl-C ended

_KEY = f"The API key is read from the environment: {' or '.join(KEY_VARIABLES)}."

_LS = f"""\
examples:
  python -m pytest_anchor ls                    what this folder's runs have open
  python -m pytest_anchor ls --remote           what the account has open, of any machine's runs
  python -m pytest_anchor ls --remote --run-id  what the CI run under way has open, on any machine
  python -m pytest_anchor ls --json | jq -r '.[].test'

{_KEY} Only --remote needs it.
exit status: 0 nothing is listed, 1 something is, 2 it cannot be told
"""

_SWEEP = f"""\
examples:
  python -m pytest_anchor sweep                 what killed runs in this folder left
  python -m pytest_anchor sweep --run-id        what all jobs of this CI run left, on any machine
  python -m pytest_anchor sweep --run-id nightly-7 --dry-run
  python -m pytest_anchor sweep --tag checkout --older-than 2h

The last step in CI, whatever became of the tests:
  GitHub Actions    - if: always()
                      run: python -m pytest_anchor sweep --run-id
  GitLab            after_script:
                      - python -m pytest_anchor sweep --run-id
Where several jobs share a run id, do so in a job of its own that comes after all of them
(GitHub Actions: "needs" and "if: always()"; GitLab: "stage: .post" and "when: always"):
--run-id ends the sessions of jobs that still run, too.

{_KEY}
exit status: 0 nothing is left, 1 something is (with --dry-run: would be ended), 2 it cannot be told,
130 interrupted
"""

_REPORT = """\
examples:
  python -m pytest_anchor report                the latest run that is on record here
  python -m pytest_anchor report 1f0c2a -o killed.html
  python -m pytest_anchor report -o killed.json

A run has its picture drawn by pytest --anchor-report FILE. This draws that of a run that was killed, or goes on,
as long as it is on record: before the next run, or "sweep", is done with it.

exit status: 0 it is drawn, 2 it cannot be
"""

_END = f"""\
example:
  python -m pytest_anchor end 7d1c4e0a-53f1-4a0b-9c55-3f6a2f1b8f10

{_KEY}
exit status: 0 all are over, 1 one may still run (with --dry-run: would be ended), 2 nothing was tried
"""


_LIMITS = f"""\
examples:
  python -m pytest_anchor limits --watch
  python -m pytest_anchor limits --shared-limits redis://cache.example:6379/0
  python -m pytest_anchor limits --json | jq '.waiting | length'

{_KEY}
exit status: 0 it was shown, 2 it cannot be told
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status, which the help of each describes."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command == "local":
        from .local.cli import main as local

        return local(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return _run(arguments)
    except (AnchorError, OSError) as error:
        write(sys.stderr, f"{error}\n")
        return 2
    except KeyboardInterrupt:
        write(sys.stderr, "interrupted: what has not been ended is still there; the same command goes on\n")
        return INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "ls":
        from .cli.ls import ls

        return ls(arguments)
    if arguments.command == "sweep":
        from .cli.sweep import sweep

        return sweep(arguments)
    if arguments.command == "report":
        from .cli.report import report

        return report(arguments)
    if arguments.command == "limits":
        from .cli.limits import limits

        return limits(arguments)
    from .cli.end import end

    return end(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_anchor",
        description="Anchor Browser sessions outside a pytest run.",
        epilog="Each command has a --help of its own.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    url = _options(
        ("--base-url", {"metavar": "URL", "help": f"default: {BASE_URL_VARIABLE}, or {DEFAULT_BASE_URL}"}),
    )
    registry = _options(
        (
            "--registry",
            {
                "metavar": "DIR",
                "type": Path,
                "help": f"where runs are recorded; default: the nearest {REGISTRY_NAME} here or in a folder above",
            },
        )
    )
    ending = _options(
        (
            "--timeout",
            {
                "metavar": "SECONDS",
                "default": str(SWEEP_TIMEOUT),
                "help": f"what all of it may take; default: {SWEEP_TIMEOUT}",
            },
        ),
        ("--dry-run", {"action": "store_true", "help": "say what would be ended, and change nothing"}),
    )

    ls = _command(commands, "ls", "list the sessions that are open", _LS, url, registry)
    ls.add_argument("--remote", action="store_true", help="ask the API, instead of reading this folder's registry")
    ls.add_argument("--json", action="store_true", help="a list of objects instead of a table")
    _add_run_id(ls, "only those of this run")

    sweep = _command(commands, "sweep", "end what dead runs left", _SWEEP, url, registry, ending)
    by = sweep.add_mutually_exclusive_group()
    _add_run_id(by, "end the sessions of this run, dead or alive, from any machine")
    by.add_argument("--tag", metavar="TAG", help="end sessions of any run that carry this tag; needs --older-than")
    sweep.add_argument("--older-than", metavar="AGE", help="only sessions older than 90 (seconds), 30s, 10m, 1h, 2d")

    end = _command(commands, "end", "end sessions by their ids", _END, url, ending)
    end.add_argument("ids", nargs="+", metavar="ID")

    report = _command(commands, "report", "draw the picture of a run from its record", _REPORT, registry)
    report.add_argument(
        "run", nargs="?", metavar="RUN", help="its folder's name, or how that begins; default: the latest"
    )
    report.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        default="anchor-report.html",
        help="FILE.html or FILE.json; default: %(default)s",
    )
    text = "show what the plan allows, which runs use it and what waits"
    limits = _command(commands, "limits", text, _LIMITS, url, registry)
    limits.add_argument(
        "--shared-limits",
        metavar="URL",
        help=f"the server that runs share, instead of this folder's registry; default: {SHARED_LIMITS_VARIABLE}",
    )
    limits.add_argument("--json", action="store_true", help="an object instead of tables")
    limits.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")

    commands.add_parser("local", help="serve Anchor's API on this machine with local Chromium", add_help=False)
    return parser


def _options(*options: tuple[str, dict[str, Any]]) -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    for name, settings in options:
        parent.add_argument(name, **settings)
    return parent


def _command(
    commands: Any, name: str, text: str, epilog: str, *parents: argparse.ArgumentParser
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=epilog,
        parents=parents,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _add_run_id(parser: Any, text: str) -> None:
    # True where it comes without a value; an empty one, as of an unset variable, is refused.
    parser.add_argument(
        "--run-id", nargs="?", const=True, metavar="ID", help=f"{text}; without ID: the CI run under way"
    )


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main())
