"""Settings: wrong ones are refused at once, and loopback is told from the rest."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from flipped_kd.serving.runtime import check_exposure
from flipped_kd.serving.settings import Limits, Settings


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *((host, True) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert Settings(host=host).is_loopback == loopback


def test_on_loopback_only_names_of_this_machine_are_taken() -> None:
    assert set(Settings().host_names) == {"localhost", "127.0.0.1", "[::1]", "::1"}
    assert "matcher.test" in Settings(allowed_hosts=("matcher.test",)).host_names
    assert Settings(host="0.0.0.0").host_names == ["*"]
    assert "*" not in Settings(host="0.0.0.0", allowed_hosts=("matcher.test",)).host_names


def test_the_token_is_in_no_description() -> None:
    assert "a-token-of-tests" not in repr(Settings(token="a-token-of-tests"))


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: Limits(texts=1), "texts=1: give an integer of at least 2"),
        (lambda: Limits(body_bytes=0), "body_bytes=0"),
        (lambda: Limits(seconds=0), "seconds=0 is out of range"),
        (lambda: Limits(seconds=float("nan")), "seconds=nan"),
        (lambda: Limits(tokens=100, waiting_tokens=99), "waiting_tokens=99: give at least as many as one request"),
        (lambda: Settings(port=65536), "port=65536"),
        (lambda: Settings(port=-1), "port=-1"),
        (lambda: Settings(wait_ms=-1), "wait_ms=-1"),
        (lambda: Settings(batch_tokens=0), "batch_tokens=0"),
        (lambda: Settings(token=""), "the token is empty"),
    ],
)
def test_wrong_settings_are_refused(made: Any, reason: str) -> None:
    with pytest.raises(ValueError) as error:
        made()
    assert reason in str(error.value)


def test_other_machines_are_let_in_with_a_token_or_where_that_was_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    check_exposure(Settings(), False)
    check_exposure(Settings(host="0.0.0.0", token="a-token-of-tests"), False)
    assert not caplog.text
    with pytest.raises(ValueError, match=r"host='0\.0\.0\.0' can be reached.*--token-file.*--without-token"):
        check_exposure(Settings(host="0.0.0.0"), False)
    check_exposure(Settings(host="0.0.0.0"), True)
    assert "asks nobody for a token" in caplog.text
