"""The server as a process: the command, signals, exit codes, and what is said."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from flipped_kd import FlippedMatcher
from flipped_kd.cli.commands import serve as command
from flipped_kd.cli.main import main
from flipped_kd.serving import runtime
from flipped_kd.serving.corpus import CorpusSource
from flipped_kd.serving.engine import Engine
from flipped_kd.serving.errors import Refused
from flipped_kd.serving.service import Service
from flipped_kd.serving.settings import Settings
from tests.cli.helpers import environment, start
from tests.serving.running import is_ready, running, wait_for

TOKEN = "a-token-of-tests"


@contextmanager
def process(
    adapter: Path, *options: object, **variables: str
) -> Iterator[tuple[subprocess.Popen[bytes], Any, list[str]]]:
    """`flipped-kd serve`, a client of it, and its lines of standard error as they come."""
    child = start("serve", adapter, "--port", 0, *options, env=environment(**variables))
    lines: list[str] = []
    assert child.stderr is not None

    def read(stream: Any) -> None:
        for line in stream:
            lines.append(line.decode().rstrip())

    reader = threading.Thread(target=read, args=(child.stderr,), daemon=True)
    reader.start()
    try:
        wait_for(lambda: child.poll() is not None or any("http://" in line for line in lines), 60)
        found = re.search(r"http://\S+?:\d+", "\n".join(lines))
        headers = {"Authorization": f"Bearer {TOKEN}"} if "FLIPPED_KD_TOKEN" in variables else {}
        with httpx.Client(base_url=found[0] if found else "http://localhost", headers=headers, timeout=30) as client:
            yield child, client, lines
    finally:
        child.kill()
        child.wait(30)
        reader.join(10)


@pytest.mark.parametrize("given", [".", "../mine", "../mine/", "me/mine"])
def test_clients_are_told_the_last_part_of_the_models_name(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    names: list[str] = []
    monkeypatch.setattr(runtime, "serve", lambda service, *_: names.append(service.settings.name))
    assert main(["serve", given]) == 0 and names == ["mine"]


def test_the_whole_life_of_a_server(adapter_dir: Path, matcher: FlippedMatcher, tmp_path: Path) -> None:
    corpus = tmp_path / "faq.txt"
    corpus.write_text("where is my card\n", encoding="utf-8")
    options = ("--corpus", corpus, "--log-requests", "--name", "mine")
    with process(adapter_dir, *options, FLIPPED_KD_TOKEN=TOKEN) as (child, client, lines):
        wait_for(lambda: is_ready(client), 60)
        assert client.get("/info").json()["model_id"] == "mine"
        assert httpx.get(f"{client.base_url}/info").status_code == 401
        (found,) = client.post("/rerank", json={"query": "cash", "texts": ["refund"]}).json()
        assert found["score"] == pytest.approx(matcher.predict(("cash", "refund")), abs=1e-5)
        corpus.write_text("where is my card\ncancel the loan\n", encoding="utf-8")
        child.send_signal(signal.SIGHUP)
        wait_for(lambda: client.get("/info").json()["corpus"] == 2)
        corpus.write_text("\n", encoding="utf-8")
        child.send_signal(signal.SIGHUP)
        wait_for(lambda: any("the one before is served still" in line for line in lines))
        assert client.get("/info").json()["corpus"] == 2
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0
        assert child.stdout is not None and child.stdout.read() == b""
    said = "\n".join(lines)
    assert lines[-1] == "flipped-kd: ended" and "POST /rerank 200" in said
    assert TOKEN not in said and str(tmp_path) not in said and "cash" not in said and "Traceback" not in said


def test_a_signal_lets_requests_be_answered_that_were_begun(adapter_dir: Path) -> None:
    texts = [f"where is my card {number} " * 8 for number in range(600)]
    with process(adapter_dir) as (child, client, _):
        wait_for(lambda: is_ready(client), 60)
        answers: list[httpx.Response] = []

        def ask(part: list[str]) -> None:
            answers.append(httpx.post(f"{client.base_url}/embed", json={"inputs": part}, timeout=60))

        threads = [threading.Thread(target=ask, args=(texts[number::3],)) for number in range(3)]
        for thread in threads:
            thread.start()
        # All three, and the one that asks: a signal ends connections whose request has not been read yet.
        wait_for(lambda: "flipped_kd_open_requests 4.0" in metrics(client))
        child.send_signal(signal.SIGINT)
        for thread in threads:
            thread.join(60)
        assert child.wait(30) == 0
        assert [answer.status_code for answer in answers] == [200] * 3
        assert all(len(answer.json()) == 200 for answer in answers)


def metrics(client: httpx.Client) -> list[str]:
    return client.get("/metrics").text.splitlines()


def test_a_signal_before_the_model_is_loaded_ends_it_too(adapter_dir: Path) -> None:
    with process(adapter_dir) as (child, _, lines):
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0 and lines[-1] == "flipped-kd: ended"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--host", "0.0.0.0"), "host='0.0.0.0' can be reached from other machines"),
        (("--id-column", "name"), "--id-column is about the corpus: give --corpus FILE too"),
        (("--save-index", "x"), "--save-index is about the corpus: give --corpus FILE too"),
        (("--token-file", "nothing-here"), "--token-file nothing-here cannot be read (No such file or directory)"),
        (("--max-texts", "1"), "'1' is no whole number from 2"),
        (("--port", "65536"), "'65536' is no whole number from 0 to 65535"),
    ],
)
def test_wrong_options_are_refused_at_once(
    adapter_dir: Path, options: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(adapter_dir), *options]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("token", ["short", "two words", "päßwörter", ""])
def test_a_token_that_cannot_be_sent_or_hidden_is_refused(
    adapter_dir: Path, token: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(token, encoding="utf-8")
    assert main(["serve", str(adapter_dir), "--token-file", str(tmp_path / "token")]) == 2
    assert "--token-file holds" in capsys.readouterr().err
    monkeypatch.setenv("FLIPPED_KD_TOKEN", token)
    assert main(["serve", str(adapter_dir)]) == 2
    shown = capsys.readouterr().err
    assert "FLIPPED_KD_TOKEN holds" in shown and (not token or token not in shown)


@pytest.mark.parametrize(
    ("model", "corpus", "reason"),
    [
        ("", None, "holds neither"),
        ("adapter", '{"text": ""}', "'faq.jsonl', row 0"),
        ("adapter", None, "does not exist"),
    ],
)
def test_what_cannot_be_loaded_ends_the_server_with_the_reason(
    adapter_dir: Path, tmp_path: Path, model: str, corpus: str | None, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if corpus is not None:
        (tmp_path / "faq.jsonl").write_text(corpus)
    options = ["--corpus", str(tmp_path / "faq.jsonl")] if model else []
    assert main(["serve", str(adapter_dir if model else tmp_path), "--port", "0", *options]) == 2
    shown = capsys.readouterr().err
    assert reason in shown.splitlines()[-1] and "Traceback" not in shown
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # signals are given back


def test_a_port_that_is_taken_is_named(adapter_dir: Path, server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    port = server.url.rpartition(":")[2]
    assert main(["serve", str(adapter_dir), "--port", port]) == 1
    assert f"127.0.0.1 port {port} cannot be had (Address already in use): give another" in capsys.readouterr().err


def test_without_the_extra_it_says_at_once_how_to_install_it(adapter_dir: Path) -> None:
    hidden = (
        "import importlib.util, sys\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name in ('fastapi', 'prometheus_client') else found(name)\n"
        "from flipped_kd.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "print(code, 'torch' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", hidden, "serve", str(adapter_dir)], capture_output=True, text=True, env=environment()
    )
    assert run.stdout == "2 False\n"
    assert "serve needs fastapi, prometheus-client, not installed here: pip install 'flipped_kd[serve]'" in run.stderr


def test_a_second_signal_does_not_wait(adapter_dir: Path) -> None:
    with process(adapter_dir) as (child, client, _):
        wait_for(lambda: is_ready(client), 60)
        body = json.dumps({"inputs": ["cash"]}).encode()
        host, port = str(client.base_url).rstrip("/").removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            # A request whose body never comes keeps the server from ending.
            connection.sendall(b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n" + body)
            wait_for(lambda: "flipped_kd_open_requests 2.0" in metrics(client))
            child.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert child.poll() is None
            child.send_signal(signal.SIGTERM)
            assert child.wait(30) == 0


def test_a_second_signal_leaves_what_is_computed(adapter_dir: Path) -> None:
    texts = [f"where is my card {number} " * 8 for number in range(2000)]
    with process(adapter_dir, "--batch-tokens", 200_000, "--max-tokens", 200_000) as (child, client, lines):
        wait_for(lambda: is_ready(client), 60)
        failed: list[Exception] = []

        def ask() -> None:
            try:
                httpx.post(f"{client.base_url}/embed", json={"inputs": texts}, timeout=60)
            except httpx.HTTPError as error:
                failed.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        wait_for(lambda: "flipped_kd_open_requests 2.0" in metrics(client))
        time.sleep(0.3)
        child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGTERM)
        start = time.monotonic()
        assert child.wait(60) == 0 and time.monotonic() - start < 20
        asking.join(60)
    assert lines[-1] == "flipped-kd: ended" and "Traceback" not in "\n".join(lines)


def test_a_signal_while_the_corpus_is_read_reads_it_again(
    adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reading that goes on may have seen the file as it was before."""
    corpus = tmp_path / "faq.txt"
    corpus.write_text("where is my card\n", encoding="utf-8")
    source = CorpusSource(str(corpus))
    service = Service(lambda: FlippedMatcher.from_pretrained(adapter_dir, device="cpu"), Settings(), source)
    read, may_end = CorpusSource.read, threading.Event()
    reads: list[int] = []

    def slowly(self: CorpusSource) -> Any:
        found = read(self)
        reads.append(len(found[0]))
        assert len(reads) == 1 or may_end.wait(30)
        return found

    monkeypatch.setattr(CorpusSource, "read", slowly)

    async def change() -> None:
        opening, changed = asyncio.create_task(service.open()), asyncio.Event()
        changed.set()  # while the model is loaded
        reloading = asyncio.create_task(runtime._reload(service, opening, changed))
        while len(reads) < 2:
            await asyncio.sleep(0.01)
        corpus.write_text("where is my card\ncancel the loan\n", encoding="utf-8")
        for _ in range(5):
            changed.set()
        with pytest.raises(Refused, match="being read already"):
            await service.reload_corpus()
        may_end.set()
        while service.corpus is None or service.corpus.index is None or len(service.corpus.index) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert reads == [1, 1, 2]  # however many signals came meanwhile
        reloading.cancel()
        await service.close()

    asyncio.run(asyncio.wait_for(change(), 60))


def test_a_reload_that_fails_in_another_way_is_counted_and_told_without_texts(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "faq.txt").write_text("where is my card\n", encoding="utf-8")
    with running(load, CorpusSource(str(tmp_path / "faq.txt")), token=TOKEN) as server:

        def fails(self: CorpusSource) -> Any:
            raise RuntimeError("where is my card")

        monkeypatch.setattr(CorpusSource, "read", fails)
        answer = server.post("/corpus/reload", {})
        assert answer.status_code == 500 and "where is my card" not in answer.text + caplog.text
        assert 'flipped_kd_corpus_reloads_total{result="failed"} 1.0' in server.client.get("/metrics").text
        assert server.answer("/search", {"query": "card"})["results"]


class Panic(BaseException):
    """As tokenizers raises it, which is written in Rust."""


def panics(*_: Any) -> Any:
    raise Panic("where is my card")


@pytest.mark.parametrize("reads", [False, True], ids=["", "while another thread reads the corpus"])
def test_a_model_that_fails_for_good_ends_the_process_as_failed(
    reads: bool, adapter_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    monkeypatch.setattr(Service, "is_working", reads)
    monkeypatch.setattr(Engine, "_compute", panics)
    answers: list[httpx.Response] = []
    ended = threading.Event()

    def ask(port: int, stop: Any) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_for(lambda: is_ready(client), 60)
            answers.append(client.post("/embed", json={"inputs": ["cash"]}))
        ended.wait(10)
        with contextlib.suppress(RuntimeError):  # it has ended long ago, as it should
            stop()

    def listening(_settings: Settings, port: int, stop: Any) -> None:
        threading.Thread(target=ask, args=(port, stop), daemon=True).start()

    monkeypatch.setattr(command, "_tell", listening)
    assert main(["serve", str(adapter_dir), "--port", "0"]) == 1
    ended.set()
    assert codes == [1] * reads
    wait_for(lambda: answers)  # the server may have ended before its client has read the answer
    (answer,) = answers
    assert answer.status_code == 503 and "the model has failed, and the server ends" in answer.json()["error"]
    said = capsys.readouterr().err
    assert "the model's thread has ended (Panic)" in said and "start it again" in said.splitlines()[-1]
    assert "where is my card" not in said and "Traceback" not in said


def test_a_model_that_has_failed_is_not_said_to_be_loading(load: Any) -> None:
    service = Service(load, Settings())

    async def fail() -> None:
        with pytest.raises(Refused, match="being loaded"):
            _ = service.engine
        await service.open()
        service.batcher.compute = panics
        with pytest.raises(Refused, match="the model has failed"):
            await service.engine.vectors(["cash"])
        with pytest.raises(Refused, match="the model has failed"):
            _ = service.engine
        assert not service.is_ready

    asyncio.run(asyncio.wait_for(fail(), 60))


class WindowsLoop(asyncio.SelectorEventLoop):
    """Takes no signals, as those of Windows."""

    def add_signal_handler(self, *_: Any) -> None:
        raise NotImplementedError

    def remove_signal_handler(self, *_: Any) -> bool:
        raise NotImplementedError


def test_signals_are_taken_where_there_are_few_and_the_loop_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGHUP")
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    ended: list[int] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        came = asyncio.Event()

        def end() -> None:
            assert asyncio.get_running_loop() is loop
            ended.append(len(ended))
            came.set()

        with runtime._signals(loop, end, lambda: pytest.fail("no such signal")):
            for number in (signal.SIGINT, signal.SIGTERM):
                came.clear()
                signal.raise_signal(number)
                await asyncio.wait_for(came.wait(), 10)

    with asyncio.Runner(loop_factory=WindowsLoop) as runner:
        runner.run(run())
    assert len(ended) == 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_other_names_can_be_allowed(load: Any) -> None:
    with running(load, allowed_hosts=("matcher.test",)) as server:
        assert server.client.get("/health", headers={"Host": "matcher.test:80"}).status_code == 200
        assert server.client.get("/health", headers={"Host": "other.test"}).status_code == 400
