import copy
import json
import pickle

import pytest

from pytest_anchor.broker.owner import CancelledError
from pytest_anchor.cleanup.ending import NotOursError
from pytest_anchor.errors import (
    SHOWN_OF_KEY,
    AnchorAPIError,
    AnchorConfigError,
    AnchorError,
    AnchorLimitError,
    AnchorLostCreateError,
    AnchorRegistryError,
    Limit,
    Secret,
    fields_of,
    printable,
    rebuild,
    redact,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain “quotes” and ümlaut", "plain “quotes” and ümlaut"),
        ("\x1b[2Jgone\x07", "\\x1b[2Jgone\\x07"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
        ("", ""),
    ],
)
def test_control_characters_are_escaped(text, shown):
    assert printable(text) == shown


def test_long_text_is_cut_at_the_limit():
    assert printable("x" * 300) == "x" * 300
    assert printable("x" * 301) == "x" * 299 + "…"
    assert printable("abcdef", 4) == "abc…"


class _DerivedAPIError(AnchorAPIError):
    """Of a module that the other process has not imported."""


class _DerivedValueError(ValueError):
    """Of a suite's own."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (AnchorLostCreateError("create", status=500), AnchorLostCreateError),
        (_DerivedAPIError("end session x", status=None, message="m", tries=0), AnchorAPIError),
        (NotOursError("end session x", message="m"), AnchorAPIError),
        (CancelledError("withdrawn"), AnchorError),
        (AnchorLimitError("full"), AnchorLimitError),
        (_DerivedValueError("v"), ValueError),
        (OSError("o"), AnchorError),
    ],
)
def test_errors_reach_another_process(error, kind):
    rebuilt = rebuild(json.loads(json.dumps(fields_of(error))))
    assert type(rebuilt) is kind
    assert str(error) in str(rebuilt)


@pytest.mark.parametrize("kind", [AnchorAPIError, AnchorLostCreateError])
@pytest.mark.parametrize("clone", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy], ids=["pickle", "copy"])
def test_api_errors_survive_pickling_whole(kind, clone):
    error = kind("end session x", status=500, code="E1", message="m", remedy="Do it.", tries=4)
    again = clone(error)
    assert type(again) is kind
    assert (again.what, again.fields(), str(again)) == (error.what, error.fields(), str(error))
    assert again.fields() == {"status": 500, "code": "E1", "message": "m", "remedy": "Do it.", "tries": 4}


def test_what_a_429_tells_is_an_attribute_and_no_field():
    error = AnchorAPIError("x", status=429, limit=Limit(1.5, 5, 60.0))
    assert (error.limit.retry_after, error.limit.quota, error.limit.window) == (1.5, 5, 60.0)
    assert "limit" not in error.fields()
    assert pickle.loads(pickle.dumps(error)).limit is AnchorAPIError("x").limit is None


@pytest.mark.parametrize("kind", [AnchorError, AnchorConfigError, AnchorRegistryError])
def test_other_errors_survive_pickling(kind):
    again = pickle.loads(pickle.dumps(kind("a sentence")))
    assert type(again) is kind
    assert str(again) == "a sentence"


def test_a_key_is_taken_out_of_a_text_that_was_cut_off_in_its_midst():
    key = "key-SECRET-4711"
    for cut in range(1, len(key)):
        left, right = redact(f"apiKey={key[:cut]}...bbb", key), redact(f"aaa...{key[-cut:]}&sessionId", key)
        for text in (left, right):
            assert not any(key[at : at + SHOWN_OF_KEY + 1] in text for at in range(len(key) - SHOWN_OF_KEY))
        assert "..." in left
        assert "..." in right
    assert redact(f"a...{key}...b", key) == "a...***...b"
    assert redact("wait...", key) == "wait..."


def test_a_secret_shows_in_no_repr():
    secret = Secret("key-SECRET-4711")
    assert repr(secret) == repr({1: secret})[4:-1] == "'***'"
    assert f"{secret}" == str(secret) == secret == "key-SECRET-4711"
    assert type(str(secret)) is str
    assert redact(f"x{secret}", secret) == "x***"


def test_hierarchy():
    assert issubclass(AnchorLostCreateError, AnchorAPIError)
    for kind in (AnchorAPIError, AnchorConfigError, AnchorRegistryError):
        assert issubclass(kind, AnchorError)
    assert not issubclass(AnchorConfigError, AnchorAPIError)
    assert not issubclass(AnchorRegistryError, AnchorAPIError)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "no answer"),
        ({"status": 500}, "HTTP 500"),
        ({"status": 500, "message": "oops"}, "HTTP 500: “oops”"),
        ({"status": 401, "code": "401", "message": "bad"}, "HTTP 401: “bad”"),
        ({"status": 402, "code": "no_credits", "message": "pay"}, "HTTP 402 code no_credits: “pay”"),
        ({"message": "connection refused", "tries": 4}, "connection refused (tried 4 times)"),
        ({"status": 503, "tries": 2}, "HTTP 503 (tried 2 times)"),
        ({"tries": 2}, "no answer (tried 2 times)"),
    ],
)
def test_reason(fields, reason):
    assert AnchorAPIError("do", **fields).reason == reason


def test_text_is_a_sentence_with_a_remedy():
    assert str(AnchorAPIError("end session x", status=500, message="oops", remedy="Wait.")) == (
        "could not end session x: HTTP 500: “oops”. Wait."
    )
    assert str(AnchorAPIError("end session x", status=500)) == "could not end session x: HTTP 500"


def test_what_the_api_says_is_made_printable():
    error = AnchorAPIError("x", status=400, code="\x1b]0;c" + "y" * 100, message="\x1b[31mred")
    assert error.message == "\\x1b[31mred"
    assert error.code.startswith("\\x1b]0;c")
    assert len(error.code) <= 63
    assert str(error).isprintable()
