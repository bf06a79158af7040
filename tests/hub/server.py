"""A stand-in for the Hugging Face Hub on this machine: real HTTP, for the real client with HF_HUB_DISABLE_XET=1."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import socket
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub import routes
from tests.hub.messages import CHUNK, Body, Call, ConnectionCut, Fault, Faults, Reply, byte_range
from tests.hub.repositories import Commit, ContentStore, HubError, Repository

OWNER = "tester"


@dataclass(frozen=True)
class Seen:
    """One request: to which host ("hub" or "storage"), what, whether with an Authorization header, and the answer.

    `status` is None where the connection was cut instead. The header's value is kept nowhere.
    """

    host: str
    method: str
    path: str
    query: str
    authorized: bool
    status: int | None


class LoopbackHub:
    """Two servers on 127.0.0.1: the Hub, and the storage host for large files that it sends its clients to.

    endpoint: URL of the Hub, for HF_ENDPOINT; token: of the user `tester`; requests: everything asked so far;
    faults: what is to go wrong; errors: tracebacks of the server itself; repositories: by id.
    """

    def __init__(self, folder: Path, part_size: int | None = None) -> None:
        """Keep everything under `folder`; take large files above `part_size` bytes in parts."""
        self.folder = folder
        self.part_size = part_size
        self.store = ContentStore(folder)
        self.repositories: dict[str, Repository] = {}
        self.faults = Faults()
        self.requests: list[Seen] = []
        self.errors: list[str] = []
        self.lock = threading.RLock()
        self._users: dict[str, str] = {}
        self._key = secrets.token_bytes(16)
        self._servers = {host: _Server(self, host) for host in ("hub", "storage")}
        self.endpoint = self._servers["hub"].url
        self.storage_endpoint = self._servers["storage"].url
        self.token = self.add_user(OWNER)

    def __enter__(self) -> LoopbackHub:
        for server in self._servers.values():
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def add_user(self, name: str) -> str:
        """A new user, or a new token for one that there is."""
        token = "hf_" + secrets.token_hex(17)
        self._users[token] = name
        return token

    def revoke(self, token: str) -> None:
        """The token is a wrong one from now on."""
        del self._users[token]

    def user_of(self, authorization: str | None) -> str | None:
        """The user of an Authorization header, None without one; HubError 401 for a wrong token."""
        if authorization is None:
            return None
        user = self._users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def add_repository(self, repo_id: str, private: bool = False) -> Repository:
        """A new repository with a first commit."""
        self.repositories[repo_id] = Repository(repo_id, private, self.store, self.folder / "commits")
        return self.repositories[repo_id]

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Environment of a process whose Hub this is; caches and settings in `home`; logged in if there is a token."""
        ours = re.compile("HF_|HUGGING|TRANSFORMERS_|SENTENCE_TRANSFORMERS_|(https?|all)_proxy$", re.IGNORECASE)
        kept = {name: value for name, value in os.environ.items() if not ours.match(name)}
        return kept | self.variables(home, token)

    def variables(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The variables of `environment` that are about the Hub."""
        variables = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return variables | ({"HF_TOKEN": token} if token else {})

    def stored(self) -> Iterator[tuple[str, bytes]]:
        """Everything ever kept: name and bytes of each file of each commit, then each file of the server's folder."""
        for repository in list(self.repositories.values()):
            for commit in repository.commits.values():
                yield from ((f"{repository.id}/{path}", self.content(commit, path)) for path in commit.files)
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                yield str(path.relative_to(self.folder)), path.read_bytes()

    def content(self, commit: Commit, path: str) -> bytes:
        """The bytes of a file of a commit."""
        return self.store.path(commit.file(path).sha256).read_bytes()

    def asked(self, pattern: str, method: str | None = None) -> list[Seen]:
        """The requests so far whose path has `pattern` (a regular expression) in it."""
        return [seen for seen in self.requests if re.search(pattern, seen.path) and method in (None, seen.method)]

    # The storage host, which knows no users: whoever has an address with a signature may use it.

    def signed(self, endpoint: str, method: str, path: str) -> str:
        """An address on either host that needs no token."""
        return f"{endpoint}{path}?signature={self._signature(method, path)}"

    def check_signature(self, call: Call) -> None:
        """HubError 403 unless the address is one of `signed`."""
        # HEAD is a GET without the content
        method = "GET" if call.method == "HEAD" else call.method
        if not hmac.compare_digest(call.query.get("signature", [""])[0], self._signature(method, call.path)):
            raise HubError(403, "The signature is not valid")

    def _signature(self, method: str, path: str) -> str:
        return hmac.new(self._key, f"{method} {path}".encode(), hashlib.sha256).hexdigest()

    def upload_action(self, sha256: str, size: int) -> dict[str, Any]:
        """Where a large file goes: one address, or one for each part and one that says it is complete."""
        if self.part_size is None or size <= self.part_size:
            return {"href": self.signed(self.storage_endpoint, "PUT", f"/objects/{sha256}")}
        parts = {
            str(number): self.signed(self.storage_endpoint, "PUT", f"/parts/{sha256}/{number}")
            for number in range(1, -(-size // self.part_size) + 1)
        }
        complete = self.signed(self.endpoint, "POST", f"/api/complete-parts/{sha256}")
        return {"href": complete, "header": {"chunk_size": str(self.part_size), **parts}}

    def store_or_fetch(self, call: Call) -> Reply:
        """Do what a request to the storage host asks for."""
        match = re.fullmatch("/(objects|parts)/([0-9a-f]{64})(?:/([0-9]+))?", call.path)
        if match is None:
            raise HubError(404, f"The storage host has no {call.path}")
        self.check_signature(call)
        kind, sha256, number = match.groups()
        if call.method == "PUT" and kind == "parts":
            return Reply(headers={"ETag": f'"{self.store.add_part(sha256, int(number), call.body.chunks())}"'})
        if call.method == "PUT":
            return Reply(headers={"ETag": f'"{self.store.add(call.body.chunks(), sha256)}"'})
        if kind == "objects" and self.store.size(sha256) is not None:
            return Reply(file=self.store.path(sha256), headers={"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})
        raise HubError(404, "No such object")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: LoopbackHub, host: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.host = host
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may go away at any time."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _serve(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        fault = self.server.hub.faults.take(self.command, path)
        body = Body(self.rfile, self.headers, fault.after if fault and fault.kind == "cut upload" else None)
        reply: Reply | None
        try:
            reply = self._answer(url.path, url.query, body, fault)
            body.read()  # so that the connection can serve the next request
            if fault is not None and fault.kind == "lose answer":
                reply = None
        except ConnectionCut:
            reply = None
        known = "Authorization" in self.headers
        # Before the answer: who has it can rely on the record.
        self.server.hub.requests.append(
            Seen(self.server.host, self.command, path, url.query, known, reply.status if reply else None)
        )
        if reply is None:
            self._cut()
        else:
            self._send(reply, fault.after if fault and fault.kind == "cut download" else None)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _answer(self, path: str, query: str, body: Body, fault: Fault | None) -> Reply:
        """What to send; faults and errors of the server included."""
        hub = self.server.hub
        try:
            if fault is not None and fault.kind == "answer":
                raise HubError(fault.status, "Internal Error - We're working hard to fix this as soon as possible!")
            if fault is not None and fault.kind == "cut upload" and self.server.host == "hub":
                body.read()  # cut before anything is done; the storage host has written what it got by then
            if self.server.host == "storage":
                if "Authorization" in self.headers:  # S3 refuses two ways of authentication, too
                    raise HubError(400, "Only one auth mechanism allowed: signature or Authorization header")
                return self._ranged(hub.store_or_fetch(Call(self.command, path, parse_qs(query), None, body)))
            user = hub.user_of(self.headers.get("Authorization"))
            with hub.lock:
                return self._ranged(routes.answer(hub, Call(self.command, path, parse_qs(query), user, body)))
        except HubError as error:
            return Reply({"error": error.message}, error.status, error.headers)
        except ConnectionCut:
            raise
        except Exception:
            hub.errors.append(traceback.format_exc())
            return Reply({"error": "The loopback Hub failed, see its errors"}, 500)

    def _ranged(self, reply: Reply) -> Reply:
        """Status and headers for the part of a file that is asked for."""
        if reply.file is None:
            return reply
        size = reply.file.stat().st_size
        part = byte_range(self.headers.get("Range"), size)
        reply.status = 206 if part else 200
        reply.headers["Content-Length"] = str(part[1] - part[0] + 1 if part else size)
        if part:
            reply.headers["Content-Range"] = f"bytes {part[0]}-{part[1]}/{size}"
        return reply

    def _send(self, reply: Reply, cut_after: int | None) -> None:
        content = reply.content if reply.json is None else json.dumps(reply.json).encode()
        headers: Mapping[str, str] = {"Content-Type": "application/json" if reply.json is not None else "text/plain"}
        headers = {"Content-Length": str(len(content)), **headers, **reply.headers}
        self.send_response(reply.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        left = int(headers["Content-Length"]) if cut_after is None else cut_after
        if self.command != "HEAD" and reply.file is None:
            self.wfile.write(content[:left])
        elif self.command != "HEAD" and reply.file is not None:
            with reply.file.open("rb") as file:
                file.seek(int(re.split("[ -]", headers.get("Content-Range", "bytes 0-"))[1]))
                while left and (chunk := file.read(min(CHUNK, left))):
                    self.wfile.write(chunk)
                    left -= len(chunk)
        if cut_after is not None:
            self._cut()

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the console; LoopbackHub.requests has it."""
