import pytest
from records import NO_IDS

from pytest_anchor.tags import TAG, is_session_id, new_nonce, new_tag, nonce_of, run_tag


def test_tags_of_one_creation():
    assert TAG == "pytest-anchor"
    assert run_tag("r") == "pytest-anchor:run=r"
    assert new_tag("n") == "pytest-anchor:new=n"


def test_a_nonce_is_fresh_and_names_its_invocation():
    nonces = {new_nonce("inv") for _ in range(100)}
    assert len(nonces) == 100
    assert all(nonce.startswith("inv-") and "," not in nonce and nonce.isprintable() for nonce in nonces)


def test_a_nonce_is_recognised_by_its_own_invocation_only():
    nonce = new_nonce("inv")
    tags = ("mine", TAG, run_tag("r"), new_tag(nonce))
    assert nonce_of(tags, "inv") == nonce
    assert nonce_of(tags, "other") is None
    assert nonce_of(tags, "in") is None
    assert nonce_of((nonce, f"x{new_tag(nonce)}", run_tag(nonce)), "inv") is None
    assert nonce_of((), "inv") is None


def test_the_right_one_of_several_nonces_is_found():
    assert nonce_of((new_tag("other-1"), new_tag("inv-2")), "inv") == "inv-2"


@pytest.mark.parametrize("value", [*NO_IDS, None, 7, ["abc"], b"abc", {"id": "abc"}])
def test_what_is_no_session_id(value):
    assert not is_session_id(value)


@pytest.mark.parametrize("value", ["a", "allx", "xall", "A-b_9", "0", "-", "x" * 128])
def test_what_is_a_session_id(value):
    assert is_session_id(value)
