"""The file of API keys: whose a key is, and what a line may say."""

from __future__ import annotations

import logging
import os
from hashlib import sha256
from pathlib import Path

import pytest

from langchain_rwkv_state.serve.keys import Keys
from langchain_rwkv_state.serve.settings import Limits, ServeError

ALICE, BOB = "sk-alice-0123456789", "sk-bob-0123456789ab"


def keys(tmp_path: Path, text: str, default: Limits | None = None) -> Keys:
    file = tmp_path / "keys"
    file.write_text(text)
    file.chmod(0o600)
    return Keys.read(file, default or Limits())


def test_a_key_names_its_tenant_and_no_other_text_does(tmp_path):
    known = keys(tmp_path, f"# who\n\nalice {ALICE} # a comment\nbob {BOB}\n")
    assert known.tenant_of(ALICE) == "alice"
    assert known.tenant_of(BOB) == "bob"
    for wrong in ("", "alice", ALICE[:-1], ALICE + " ", f"{ALICE}\0", "\ud800"):
        assert known.tenant_of(wrong) is None


def test_two_keys_of_one_name_are_one_tenant(tmp_path):
    known = keys(tmp_path, f"alice {ALICE} requests=2\nalice {BOB} requests=2")
    assert known.tenant_of(ALICE) == known.tenant_of(BOB) == "alice"
    assert known.limits == {"alice": Limits(requests=2)}


def test_a_file_may_hold_a_digest_in_place_of_a_key(tmp_path):
    digest = sha256(ALICE.encode()).hexdigest()
    known = keys(tmp_path, f"alice sha256:{digest}")
    assert known.tenant_of(ALICE) == "alice"
    assert known.tenant_of(f"sha256:{digest}") is None, "the digest itself opens nothing"


def test_limits_of_a_line_go_before_the_servers(tmp_path):
    known = keys(
        tmp_path,
        f"alice {ALICE} requests=8 tokens_per_minute=60000 body=2MB\nbob {BOB} requests=none",
        Limits(requests=3, body_bytes=100),
    )
    assert known.limits["alice"] == Limits(8, 60000, 2 << 20)
    assert known.limits["bob"] == Limits(None, None, 100)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        (f"metrics {ALICE}", "holds no key"),
        ("alice", "alice has no key"),
        ("alice requests=8", "alice has no key"),
        (f"../alice {ALICE}", "a name is"),
        (f"alice {ALICE}\nAlice {BOB}", "capitals alone"),
        (f"alice {ALICE}\nbob {ALICE}", "the key of bob is that of alice"),
        (f"alice {ALICE} requests=2\nalice {BOB}", "other limits"),
        (f"alice {ALICE} request=2", "'request' is no limit"),
        (f"alice {ALICE} more", "a key has no spaces"),
        (f"alice {ALICE} requests=0", "'0' is no number"),
        (f"alice {ALICE} body=4XB", "'4XB' is no size"),
        ("alice sha256:1234", "64 hexadecimal digits"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_without_its_key(tmp_path, text, says):
    with pytest.raises(ServeError, match=says) as raised:
        keys(tmp_path, text)
    assert ALICE not in str(raised.value)
    assert BOB not in str(raised.value)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ServeError, match="cannot be read"):
        Keys.read(tmp_path / "none", Limits())


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_file_that_others_may_read_and_a_short_key_are_warned_of(tmp_path, caplog):
    file = tmp_path / "keys"
    file.write_text("alice short")
    file.chmod(0o640)
    with caplog.at_level(logging.WARNING):
        Keys.read(file, Limits())
    assert "chmod 600" in caplog.text
    assert "the key of alice has 5 characters" in caplog.text
    assert "short" not in caplog.text.replace(str(file), "")


def test_keys_are_in_no_repr(tmp_path):
    assert ALICE not in repr(keys(tmp_path, f"alice {ALICE}"))
