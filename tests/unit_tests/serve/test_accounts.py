"""Limits of a tenant: requests at once and tokens a minute, also of several processes together."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

from langchain_rwkv_state.serve.accounts import Account
from langchain_rwkv_state.serve.errors import ApiError
from langchain_rwkv_state.serve.ledger import SharedLedger
from langchain_rwkv_state.serve.settings import Limits


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_no_more_requests_run_at_once_than_the_limit_says():
    account = Account("alice", Limits(requests=2))
    account.enter()
    account.enter()
    with pytest.raises(ApiError) as raised:
        account.enter()
    assert raised.value.status == 429
    assert raised.value.headers["retry-after"] == "1"
    assert raised.value.headers["x-ratelimit-limit-requests"] == "2"
    assert raised.value.headers["x-ratelimit-remaining-requests"] == "0"
    account.leave()
    account.enter()


def test_tokens_that_were_read_and_answered_are_paid_for_and_cached_ones_are_not():
    clock = Clock()
    account = Account("alice", Limits(tokens_per_minute=60), clock=clock)
    account.spent(read=100, cached=90, answered=20)
    assert dict(account.headers())[b"x-ratelimit-remaining-tokens"] == b"30"
    assert dict(account.headers())[b"x-ratelimit-reset-tokens"] == b"30.000s"
    account.enter()


def test_who_overdrew_waits_until_a_token_is_there_and_is_told_how_long():
    clock = Clock()
    account = Account("alice", Limits(tokens_per_minute=60), clock=clock)
    account.enter()
    account.leave()
    account.spent(read=70, cached=0, answered=0)
    with pytest.raises(ApiError) as raised:
        account.enter()
    assert (raised.value.status, raised.value.kind) == (429, "tokens")
    assert raised.value.headers["retry-after"] == "11"
    assert raised.value.headers["x-ratelimit-remaining-tokens"] == "0"
    clock.now = 10.0
    with pytest.raises(ApiError):
        account.enter()
    clock.now = 11.0
    account.enter()


def test_no_more_than_a_minutes_tokens_are_saved_up():
    clock = Clock()
    account = Account("alice", Limits(tokens_per_minute=60), clock=clock)
    clock.now = 3600.0
    account.spent(read=60, cached=0, answered=0)
    with pytest.raises(ApiError):
        account.enter()


def test_a_request_that_is_refused_for_tokens_counts_as_none_that_runs():
    account = Account("alice", Limits(requests=1, tokens_per_minute=60), clock=Clock())
    account.spent(read=60, cached=0, answered=0)
    for _ in range(3):
        with pytest.raises(ApiError) as raised:
            account.enter()
        assert raised.value.kind == "tokens"


def test_limits_may_change_while_requests_run():
    account = Account("alice", Limits(), clock=Clock())
    account.enter()
    account.change(Limits(requests=1, tokens_per_minute=60))
    with pytest.raises(ApiError) as raised:
        account.enter()
    assert raised.value.kind == "requests"
    account.leave()
    account.enter()


@pytest.fixture
def shared():
    pytest.importorskip("fcntl", reason="workers are forked, which Windows cannot")
    ledger = SharedLedger(2)
    yield ledger
    ledger.close()


def test_a_limit_is_one_for_all_processes(shared):
    first = Account("alice", Limits(2, 60), shared.at(0), clock=Clock())
    second = Account("alice", Limits(2, 60), shared.at(1), clock=Clock())
    other = Account("bob", Limits(2, 60), shared.at(1), clock=Clock())
    first.enter()
    second.enter()
    for account in (first, second):
        with pytest.raises(ApiError) as raised:
            account.enter()
        assert raised.value.kind == "requests"
    other.enter()
    first.leave()
    second.leave()
    first.spent(read=60, cached=0, answered=0)
    with pytest.raises(ApiError) as raised:
        second.enter()
    assert raised.value.kind == "tokens"
    other.enter()


def test_requests_of_a_process_that_died_run_no_more(shared):
    first = Account("alice", Limits(1), shared.at(0))
    second = Account("alice", Limits(1), shared.at(1))
    first.enter()
    with pytest.raises(ApiError):
        second.enter()
    shared.forget(0)
    second.enter()


@pytest.mark.posix
def test_forked_processes_share_the_counts(shared):
    account = Account("alice", Limits(), shared.at(0))
    pid = os.fork()
    if not pid:
        with suppress(BaseException):
            Account("alice", Limits(), shared.at(1)).spent(read=5, cached=0, answered=2)
        os._exit(0)
    os.waitpid(pid, 0)
    assert account._uses.tokens() == 7
