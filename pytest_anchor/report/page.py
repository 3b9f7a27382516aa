"""The picture of a run as one page of HTML, which loads nothing."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from ..errors import printable
from .model import FAILURES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MOST_FAILURES = 50  # that are written out
MOST_LEFT = 20
NOTABLE = 0.05  # part of the tests' time
MOST_OF_A_NAME = 500  # characters

_FOLDER = Path(__file__).parent
_SPENT = (
    ("own", "their own work"),
    ("create", "waiting for the API to create sessions"),
    ("end", "waiting for the API to end them"),
    ("rate", "waiting for the plan's rate limit"),
    ("slot", "waiting for a free browser slot"),
)
_LEGEND = (
    ("wait", "waiting for the plan"),
    ("create", "being created"),
    ("own", "used by a test"),
    ("failed", "used by a failing test"),
    ("idle", "idle"),
    ("end", "being ended"),
    ("lost", "creation without an answer"),
)
_COLUMNS = (
    ("test", "test"),
    ("outcome", "outcome"),
    ("lane", "worker"),
    ("began", "began"),
    ("took", "took"),
    ("waited", "waited"),
)


class _Tile(NamedTuple):
    name: str
    value: str
    more: str = ""
    tone: str = ""


def page_of(document: dict[str, Any], version: str, images: Mapping[str, str]) -> str:
    """The page.

    :param document: what :func:`.document.document_of` made.
    :param version: this plugin's.
    :param images: data URLs of screenshots, by their paths.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    style, script = (_read(name) for name in ("page.css", "page.js"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_read("page.html"))
    return template.render(
        **_texts(document, images),
        version=version,
        run=document["run"],
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),  # noqa: S704 - this package's own, as is the next
        script=Markup(script),  # noqa: S704
        data=Markup(_data(document)),  # noqa: S704 - nothing in it can end the element
        duration=duration,
        legend=_LEGEND,
        columns=_COLUMNS,
    )


def duration(seconds: float) -> str:
    """A time span in words: ``4.2 s``, ``41 s``, ``12 min 5 s``, ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if (whole := round(seconds)) < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _texts(document: dict[str, Any], images: Mapping[str, str]) -> dict[str, Any]:
    """What the template has to say."""
    run, totals, lanes = document["run"], document["totals"], document["lanes"]
    failed = sum(totals["outcomes"].get(outcome, 0) for outcome in FAILURES)
    left = (
        [session for session in document["sessions"] if session["state"] in ("open", "lost")] if _is_over(run) else []
    )
    workers = f"{len(lanes)} workers" if len(lanes) > 1 else "one process"
    began = time.gmtime(min(run["began"], 2**40))
    spent = _spent(totals)
    headline = f"{_count(totals['tests'], 'test')} in {_count(totals['sessions'], 'session')}"
    return {
        "headline": f"{headline}, {failed} failed" if failed else headline,
        "began": time.strftime("%Y-%m-%d %H:%M:%S UTC", began),
        "began_iso": time.strftime("%Y-%m-%dT%H:%M:%SZ", began),
        "workers": workers,
        "settings": _settings(run),
        "left_title": f"{_count(len(left), 'session')} not confirmed to be over",
        "left": [_named(session, lanes) for session in left[:MOST_LEFT]],
        "tiles": list(_tiles(document, failed)),
        "spent": spent,
        "spent_text": ", ".join(f"{part['name']}: {part['seconds']}" for part in spent),
        "notes": list(_notes(document)),
        "estimates": document["estimates"],
        "workers_estimated": any(one["options"].startswith("-n") for one in document["estimates"]),
        "no_estimate": _no_estimate(document),
        "live_text": f"Sessions open over time: at most {totals['most_at_once']} at once"
        + (f", of {run['max_sessions']} that the plan allows" if run["max_sessions"] else ""),
        "lanes_text": f"{_count(totals['sessions'], 'session')} of {workers} over {duration(run['seconds'])}",
        **_failures(document, failed, images),
    }


def _tiles(document: dict[str, Any], failed: int) -> Iterator[_Tile]:
    run, totals = document["run"], document["totals"]
    waits = totals["test_seconds"]
    whole = sum(waits.values())
    waited = whole - waits["own"]
    outcomes = [f"{number:,} {outcome}" for outcome, number in totals["outcomes"].items() if outcome not in FAILURES]
    yield _Tile("Run", duration(run["seconds"]))
    yield _Tile("Tests failed", str(failed), ", ".join(outcomes), "bad" if failed else "")
    yield _Tile(
        "Sessions",
        f"{totals['sessions']:,}",
        f"at most {totals['most_at_once']} at once"
        + (f", {run['max_sessions']} allowed" if run["max_sessions"] else ""),
    )
    credits_used = totals["credits"]
    yield _Tile(
        "Browser time",
        duration(60 * totals["browser_minutes"]),
        "" if credits_used is None else f"{credits_used:.4g} credits",
    )
    share = waited / whole if whole else 0.0
    yield _Tile("Tests waited", duration(waited), f"{share:.0%} of their time")
    yield _Tile("Answers of 429", f"{totals['rate_limited']:,}", "creations refused for now")


def _settings(run: dict[str, Any]) -> str:
    words = [f"--anchor-prefetch {run['prefetch']}"] if run["prefetch"] else []
    words += ["--anchor-end background"] if run["end"] == "background" else []
    return " ".join(words)


def _spent(totals: dict[str, Any]) -> list[dict[str, Any]]:
    seconds = totals["test_seconds"]
    whole = sum(seconds.values())
    parts, x = [], 0.0
    for phase, name in _SPENT:
        share = seconds[phase] / whole if whole else 0.0
        if share > 0:
            shown = {"seconds": duration(seconds[phase]), "percent": f"{share:.0%}"}
            parts.append({"phase": phase, "name": name, "x": round(x, 1), "width": round(1000 * share, 1), **shown})
        x += 1000 * share
    return parts


def _notes(document: dict[str, Any]) -> Iterator[str]:
    run, totals = document["run"], document["totals"]
    for limit, words in (
        ("rate", "the plan's rate limit"),
        ("slot", "a free browser slot"),
        ("elsewhere", "runs on other machines"),
    ):
        wait = totals["limit_waits"][limit]
        if wait["creations"]:
            text = f"{_count(wait['creations'], 'creation')} waited {duration(wait['seconds'])} for {words}"
            if limit == "rate" and run["rate"]:
                text += f": {_count(run['rate']['creations'], 'creation')} in {run['rate']['seconds']:g} s"
            if limit == "slot" and run["max_sessions"]:
                text += f": {run['max_sessions']} at once"
            yield text
    for name, one, many in (
        ("retried", "creation was retried", "creations were retried"),
        ("kept", "session is kept open for a while", "sessions are kept open for a while"),
        ("swept", "session was left to the final sweep", "sessions were left to the final sweep"),
        ("recovered", "session was ended after the run's death", "sessions were ended after the run's death"),
        ("ended_by_themselves", "session ended by itself", "sessions ended by themselves"),
        ("unused", "session was created ahead and never used", "sessions were created ahead and never used"),
        ("unreadable", "line of the record cannot be read", "lines of the record cannot be read"),
    ):
        if number := totals[name]:
            yield f"{number} {one if number == 1 else many}"


def _no_estimate(document: dict[str, Any]) -> str:
    seconds = document["totals"]["test_seconds"]
    if not _is_over(document["run"]):
        return "This is computed once the run is over."
    if seconds["rate"] > NOTABLE * sum(seconds.values()):
        return "The plan's rate limit sets the pace: with sessions that several tests share, fewer are created."
    if seconds["slot"] > NOTABLE * sum(seconds.values()):
        return "The plan's number of sessions at once sets the pace: fewer workers would be as fast."
    return "No option would have saved much: the time is the tests' own."


def _failures(document: dict[str, Any], failed: int, images: Mapping[str, str]) -> dict[str, Any]:
    lanes, sessions = document["lanes"], document["sessions"]
    failures = ((number, test) for number, test in enumerate(document["tests"]) if test["outcome"] in FAILURES)
    written_out = [
        {
            "number": number,
            "test": _name(test["test"]),
            "outcome": test["outcome"],
            "lane": _name(lanes[test["lane"]]),
            "at": _clock(test["began"]),
            "took": duration(test["ended"] - test["began"]),
            "screenshots": [images[path] for path in test["screenshots"] if path in images],
            "files": [
                (kind, f"./{quote(path)}")
                for kind, paths in (
                    ("screenshot", (path for path in test["screenshots"] if path not in images)),
                    ("recording", (path for one in test["sessions"] for path in sessions[one]["recordings"])),
                )
                for path in paths
            ],
        }
        for number, test in islice(failures, MOST_FAILURES)
    ]
    more = failed - MOST_FAILURES
    return {
        "failures": written_out,
        "failures_total": failed,
        "failures_more": f"{more} more are in the table of tests." if more > 0 else "",
    }


def _data(document: dict[str, Any]) -> str:
    """What the script draws, as JSON that cannot end the element it is in."""
    tests = [{**test, "test": _name(test["test"]), "waits": list(test["waits"].values())} for test in document["tests"]]
    sessions = [{**session, "test": _name(session["test"])} for session in document["sessions"]]
    data = {
        "seconds": document["run"]["seconds"],
        "cap": document["run"]["max_sessions"] or 0,
        "lanes": [_name(lane) for lane in document["lanes"]],
        "live": document["live"],
        "running": not _is_over(document["run"]),
        "tests": _by_column(tests, ("screenshots",)),
        "sessions": _by_column(sessions, ("command", "recordings")),
    }
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _by_column(records: list[dict[str, Any]], without: Sequence[str] = ()) -> dict[str, Any]:
    fields = [name for name in (records[0] if records else {}) if name not in without]
    return {"fields": fields, "rows": [[record[name] for name in fields] for record in records]}


def _named(session: dict[str, Any], lanes: list[str]) -> dict[str, Any]:
    return {
        "id": session["id"],
        "command": session["command"],
        "test": _name(session["test"]),
        "lane": _name(lanes[session["lane"]]),
    }


def _name(text: str) -> str:
    return text if text.isprintable() and len(text) <= MOST_OF_A_NAME else printable(text, MOST_OF_A_NAME)


def _is_over(run: dict[str, Any]) -> bool:
    return bool(run["status"] != "running")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
