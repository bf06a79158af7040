"""docs/serving.md: its commands parse, its requests and clients work, its tables name what is there."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from fastapi import FastAPI, Request
from openai import OpenAI
from transformers import AutoModelForCausalLM

from flipped_kd import FlippedMatcher
from flipped_kd.cli.parser import build_parser
from flipped_kd.serving.corpus import CorpusSource
from tests.cli.helpers import ROOT, environment, quietly
from tests.serving.conftest import CORPUS
from tests.serving.running import PATIENCE, Running, running, wait_for

TEXT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
BASH = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
# A command ends with its line, unless a backslash carries it on.
COMMANDS = [line.strip() for block in BASH for line in block.replace("\\\n", " ").splitlines()]
REQUESTS = [command for command in COMMANDS if command.startswith("curl")]
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
# They are asked otherwise than our own server's clients.
(ENGINE,) = (code for code in BLOCKS if "PairPrompt" in code)
(DATABASE,) = (code for code in BLOCKS if "lancedb" in code)
PYTHON = [code for code in BLOCKS if code not in (ENGINE, DATABASE)]
(PROXY,) = re.findall(r"```nginx\n(.*?)```", TEXT, re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"
TOKEN = "a-token-of-tests"


@pytest.fixture(scope="module")
def documented(load: Any, corpus_file: Path) -> Iterator[Running]:
    """With a token, which the examples do not send: it is put into their requests."""
    with running(load, CorpusSource(str(corpus_file)), token=TOKEN) as server:
        yield server


def test_there_is_an_example_for_each_interface() -> None:
    assert len(REQUESTS) == 6 and len(PYTHON) == 5
    for route in ("/rerank", "/v1/embeddings", "/v1/rerank", "/match", "/search", "/corpus/reload"):
        assert any(f"{ADDRESS}{route} " in request for request in REQUESTS), route


def test_commands_parse() -> None:
    served = [command.partition("flipped-kd ")[2] for command in COMMANDS if "flipped-kd serve" in command]
    assert len(served) == 4
    for command in served:
        build_parser().parse_args(shlex.split(command))
    options = set(re.findall(r"`(--[a-z-]+)", TEXT))
    helped = build_parser()._subparsers._group_actions[0].choices["serve"].format_help()  # type: ignore[union-attr,index]
    assert len(options) > 12 and all(option in helped for option in options)


@pytest.mark.parametrize("command", REQUESTS, ids=[re.findall(r"8000(\S+)", request)[0] for request in REQUESTS])
def test_requests_are_answered(documented: Running, command: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    words = [word.replace(ADDRESS, documented.url) for word in shlex.split(command)]
    if "Authorization: Bearer $FLIPPED_KD_TOKEN" in words:
        words[words.index("Authorization: Bearer $FLIPPED_KD_TOKEN")] = f"Authorization: Bearer {TOKEN}"
    else:
        words += ["-H", f"Authorization: Bearer {TOKEN}"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_clients_work(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a server without a token."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    found: dict[str, Any] = {}
    for number, code in enumerate(PYTHON):
        exec(compile(code.replace(ADDRESS, server.url), f"docs/serving.md block {number}", "exec"), found)
    assert len(found["cosines"]) == 2 and found["best"] in (0, 1)
    assert len(found["vectors"][0]) == len(found["vector"])
    assert 0 <= found["probability"] <= 1 and found["match"] == (found["probability"] >= 0.9)
    assert len(found["texts"]) == 2


def test_the_answers_that_are_shown_have_the_form_of_real_ones(server: Running) -> None:
    shown = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)]
    for example, more in zip(shown, ({"rerank": 2}, {}), strict=True):
        body = {"query": "Where is my refund?", "top_k": 1} | more
        answer = httpx.post(f"{server.url}/search", json=body).json()
        assert list(example) == list(answer)
        for field, value in (example["results"][0] | {"score of": example["score"]}).items():
            real = (answer["results"][0] | {"score of": answer["score"]})[field]
            assert type(value) is type(real), field


def test_the_client_of_another_engine_gets_the_answers_probability(
    adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is a stand-in that speaks vLLM's route, with the logits of the merged model by transformers."""
    merged = tmp_path / "outputs" / "mine-merged"
    assert quietly("merge", adapter_dir, "-o", merged) == 0
    model = AutoModelForCausalLM.from_pretrained(merged).eval()
    asked: list[dict[str, Any]] = []
    app = FastAPI()

    @app.post("/v1/completions")
    async def complete(request: Request) -> dict[str, Any]:
        asked.append(body := await request.json())
        with torch.inference_mode():
            logits = model(torch.tensor([body["prompt"]])).logits[0, -1] / body["temperature"]
        allowed = body["allowed_token_ids"]
        told = dict(zip(allowed, logits[allowed].log_softmax(-1).tolist(), strict=True))
        shown = {f"token_id:{token}": told[token] for token in sorted(told, key=told.__getitem__)[: body["logprobs"]]}
        choice = {"index": 0, "text": "", "finish_reason": "length", "logprobs": {"top_logprobs": [shown]}}
        return {"id": "1", "object": "text_completion", "created": 1, "model": body["model"], "choices": [choice]}

    with socket.create_server(("127.0.0.1", 0)) as sock:
        engine = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=engine.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        wait_for(lambda: engine.started)
        monkeypatch.chdir(tmp_path)
        found: dict[str, Any] = {"OpenAI": OpenAI}
        code = ENGINE.replace("http://127.0.0.1:8001", f"http://127.0.0.1:{sock.getsockname()[1]}")
        exec(compile(code, "docs/serving.md, the engine", "exec"), found)
        engine.should_exit = True
        thread.join(PATIENCE)
    pair = ("Where is my refund?", "How long does a refund take?")
    expected = FlippedMatcher.from_pretrained(merged, device="cpu").predict(pair, score="answer")
    assert found["probability"] == pytest.approx(float(expected), abs=1e-5)
    assert asked[0]["max_tokens"] == 1 and asked[0]["return_tokens_as_token_ids"] is True


def test_vectors_are_found_in_a_database(server: Running, matcher: FlippedMatcher, tmp_path: Path) -> None:
    """In a process of its own: the database has threads that do not survive a fork of other tests."""
    if importlib.util.find_spec("lancedb") is None:
        pytest.skip("LanceDB is not installed: pip install -e '.[test]'")
    matcher.index(CORPUS).save(tmp_path / "outputs" / "faq-index")
    code = DATABASE.replace(ADDRESS, server.url) + "\nimport json\nprint(json.dumps([nearest, cosines, best]))\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    nearest, cosines, best = json.loads(done.stdout.splitlines()[-1])
    (expected,) = matcher.search("Where is my refund?", CORPUS, top_k=3)
    assert [hit["text"] for hit in nearest] == [CORPUS[hit["corpus_id"]] for hit in expected]
    assert cosines == pytest.approx([hit["score"] for hit in expected], abs=1e-5)
    (ranked,) = matcher.rank("Where is my refund?", [hit["text"] for hit in nearest], top_k=1)
    assert best == nearest[ranked["corpus_id"]]["text"]


@pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx on this machine")
def test_the_proxy_goes_on_with_one_process_less(load: Any, corpus_file: Path, tmp_path: Path) -> None:
    name = "matcher.example"
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    serving = partial(running, load, CorpusSource(str(corpus_file)), allowed_hosts=(name,))
    with serving() as first, ExitStack() as ends_early:
        second = ends_early.enter_context(serving())
        config = PROXY.replace("listen 8000", f"listen 127.0.0.1:{port}")
        for number, one in ((8001, first), (8002, second)):
            config = config.replace(f"127.0.0.1:{number}", one.url.removeprefix("http://"))
        with proxy(config, tmp_path, port):
            url, headers = f"http://127.0.0.1:{port}", {"Host": name}
            bodies = [{"inputs": [f"text {number}"]} for number in range(40)]

            def ask(body: Any) -> int:
                return httpx.post(f"{url}/embed", headers=headers, json=body, timeout=PATIENCE).status_code

            with ThreadPoolExecutor(8) as pool:
                assert set(pool.map(ask, bodies)) == {200}
            for one in (first, second):  # each has its part
                told = one.client.get("/metrics").text
                assert 'flipped_kd_requests_total{route="/embed",status="200"}' in told
            for route in ("/metrics", "/corpus/reload"):
                there = httpx.get(f"{url}{route}", headers=headers)
                assert there.status_code == 404 and "nginx" in there.text
            assert httpx.get(f"{url}/info", headers={"Host": "evil.example"}).status_code == 400
            ends_early.close()
            assert set(map(ask, bodies)) == {200}


@contextmanager
def proxy(config: str, folder: Path, port: int) -> Iterator[None]:
    """nginx with a configuration of ours, as this user."""
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    places = f"daemon off;\npid {folder}/pid;\nerror_log {folder}/log;\nevents {{}}\n"
    text = f"{places}http {{\naccess_log off;\n{paths}{config}}}\n"
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    process = subprocess.Popen(["nginx", "-p", folder, "-c", folder / "nginx.conf"])
    try:
        wait_for(lambda: process.poll() is not None or listens(port))
        assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_tables_name_what_is_there(server: Running) -> None:
    routes = set(re.findall(r"`(?:GET|POST) (/[\w/]+)`", TEXT))
    assert routes == set(server.client.get("/openapi.json").json()["paths"])
    told = {name for name in re.findall(r"`(flipped_kd_\w+)", TEXT)}
    there = set(re.findall(r"^# TYPE (\w+) ", server.client.get("/metrics").text, re.M))
    assert {name for name in there if not name.endswith("_created")} == told


def test_limits_are_those_of_the_command() -> None:
    defaults = vars(build_parser().parse_args(["serve", "MODEL"]))
    for option, value in re.findall(r"`--(max-[a-z-]+|timeout)` ([\d,]+)", TEXT):
        assert defaults[option.replace("-", "_")] == int(value.replace(",", "")), option
    assert f"up to {defaults['wait_ms']:g} ms" in TEXT
