"""The Hub's API, as far as the loopback Hub has it: repositories, revisions, commits, files."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tests.hub.cards import check_card, read_metadata
from tests.hub.messages import Call, Reply
from tests.hub.repositories import Changes, Commit, HubError, Repository, StoredFile, is_large

if TYPE_CHECKING:
    from tests.hub.server import LoopbackHub

Route = Callable[["LoopbackHub", Call], Reply]


def answer(hub: LoopbackHub, call: Call) -> Reply:
    """Do what a request to the Hub's own host asks for; HubError where that cannot be."""
    for method, pattern, route in _ROUTES:
        if method == call.method and (match := pattern.fullmatch(call.path)):
            call.values = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
            return route(hub, call)
    if re.match("/api/models/|/.+/resolve/", call.path):
        raise _no_repository(call)
    raise HubError(404, f"The loopback Hub has no {call.method} {call.path}")


def _no_repository(call: Call) -> HubError:
    """As the Hub says it, which tells nobody whether there is a private repository of that name."""
    return HubError(404 if call.user else 401, "Repository not found", "RepoNotFound")


def _repository(hub: LoopbackHub, call: Call, repo_id: str | None = None, write: bool = False) -> Repository:
    repository = hub.repositories.get(repo_id or call.values["repo"])
    if repository is None or (repository.private and call.user != repository.owner):
        raise _no_repository(call)
    if write:
        _check_writer(call, repository.owner)
    return repository


def _check_writer(call: Call, namespace: str) -> None:
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    if call.user != namespace:
        raise HubError(403, f"You don't have the rights to change anything of {namespace}")


def who_am_i(hub: LoopbackHub, call: Call) -> Reply:
    """The user of a token."""
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    access = {"type": "access_token", "accessToken": {"displayName": "loopback", "role": "write"}}
    return Reply({"type": "user", "name": call.user, "fullname": call.user, "orgs": [], "auth": access})


def validate_yaml(hub: LoopbackHub, call: Call) -> Reply:
    """Check the metadata of a model card."""
    errors, warnings = check_card(call.body.json()["content"])
    found = {
        name: [{"message": text} for text in texts] for name, texts in (("errors", errors), ("warnings", warnings))
    }
    return Reply(found, status=400 if errors else 200)


def create_repository(hub: LoopbackHub, call: Call) -> Reply:
    """A new repository with a first commit."""
    asked = call.body.json()
    if asked.get("type", "model") != "model":
        raise HubError(400, f"The loopback Hub has model repositories only, not {asked['type']!r}")
    namespace = asked.get("organization") or call.user or ""
    _check_writer(call, namespace)
    repo_id = f"{namespace}/{asked['name']}"
    url = f"{hub.endpoint}/{repo_id}"
    if repo_id in hub.repositories:
        return Reply({"error": "You already created this model repo", "url": url}, status=409)
    hub.add_repository(repo_id, private=asked.get("visibility") == "private")
    return Reply({"url": url, "name": repo_id, "id": repo_id})


def delete_repository(hub: LoopbackHub, call: Call) -> Reply:
    """Remove a repository."""
    asked = call.body.json()
    repo_id = f"{asked.get('organization') or call.user}/{asked['name']}"
    _repository(hub, call, repo_id, write=True)
    del hub.repositories[repo_id]
    return Reply({})


def change_settings(hub: LoopbackHub, call: Call) -> Reply:
    """Make a repository private or public."""
    repository = _repository(hub, call, write=True)
    if (visibility := call.body.json().get("visibility")) is not None:
        repository.private = visibility == "private"
    return Reply({"private": repository.private})


def information(hub: LoopbackHub, call: Call) -> Reply:
    """What a repository is at a revision."""
    repository = _repository(hub, call)
    commit = repository.at(call.values.get("revision", "main"))
    metadata = read_metadata(hub.content(commit, "README.md").decode()) if "README.md" in commit.files else {}
    siblings: list[dict[str, Any]] = []
    for path, file in commit.files.items():
        entry: dict[str, Any] = {"rfilename": path}
        if call.flag("blobs"):
            entry |= {"size": file.size, "blobId": file.blob_id}
            if file.large:
                entry["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
        siblings.append(entry)
    return Reply(
        {
            "id": repository.id,
            "modelId": repository.id,
            "author": repository.owner,
            "sha": commit.oid,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "createdAt": repository.created,
            "lastModified": commit.date,
            "downloads": 0,
            "likes": 0,
            "tags": list(metadata.get("tags") or []),
            "library_name": metadata.get("library_name"),
            "pipeline_tag": metadata.get("pipeline_tag"),
            "cardData": metadata,
            "siblings": siblings,
        }
    )


def _entry(path: str, file: StoredFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": file.blob_id, "size": file.size}
    if file.large:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return entry


def _folders(commit: Commit, under: str) -> list[dict[str, Any]]:
    parents = {path[:end] for path in commit.files for end in range(len(path)) if path[end] == "/"}
    return [
        {"type": "directory", "path": folder, "oid": commit.oid, "size": 0}
        for folder in sorted(parents)
        if folder.startswith(under)
    ]


def tree(hub: LoopbackHub, call: Call) -> Reply:
    """Files and folders, of one folder or of everything below it."""
    commit = _repository(hub, call).at(call.values["revision"])
    under = call.values["path"].rstrip("/") + "/" if "path" in call.values else ""
    entries = [_entry(path, file) for path, file in commit.files.items() if path.startswith(under)]
    if under and not entries:
        raise HubError(404, f"{under[:-1]} does not exist on {call.values['revision']}", "EntryNotFound")
    entries = _folders(commit, under) + entries
    if not call.flag("recursive"):
        entries = [entry for entry in entries if "/" not in entry["path"][len(under) :]]
    return Reply(entries)


def paths_information(hub: LoopbackHub, call: Call) -> Reply:
    """Files and folders by name; names that are not there are left out."""
    commit = _repository(hub, call).at(call.values["revision"])
    entries = {entry["path"]: entry for entry in _folders(commit, "")}
    entries |= {path: _entry(path, file) for path, file in commit.files.items()}
    return Reply([entries[path] for path in call.form().get("paths", []) if path in entries])


def references(hub: LoopbackHub, call: Call) -> Reply:
    """Branches and tags."""
    repository = _repository(hub, call)

    def listed(names: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in names.items()]

    return Reply(
        {
            "branches": listed(repository.branches, "refs/heads/"),
            "tags": listed(repository.tags, "refs/tags/"),
            "converts": [],
            "pullRequests": [],
        }
    )


def commits(hub: LoopbackHub, call: Call) -> Reply:
    """The history of a revision, newest first."""
    history = _repository(hub, call).history(call.values["revision"])
    return Reply(
        [
            {"id": each.oid, "title": each.title, "message": each.message, "date": each.date}
            | {"authors": [{"user": each.author}]}
            for each in history
        ]
    )


def create_branch(hub: LoopbackHub, call: Call) -> Reply:
    """A branch from the head of main or from a revision."""
    repository = _repository(hub, call, write=True)
    return _create_reference(
        repository, repository.branches, call.values["name"], call.body.json().get("startingPoint", "main")
    )


def create_tag(hub: LoopbackHub, call: Call) -> Reply:
    """A tag on a revision."""
    repository = _repository(hub, call, write=True)
    return _create_reference(repository, repository.tags, call.body.json()["tag"], call.values["revision"])


def _create_reference(repository: Repository, names: dict[str, str], name: str, revision: str) -> Reply:
    if name.startswith("refs/"):
        raise HubError(400, f"Invalid reference for a branch or tag: {name}")
    oid = repository.at(revision).oid
    if name in names:
        raise HubError(409, f"Reference already exists: {name}")
    names[name] = oid
    return Reply({})


def delete_branch(hub: LoopbackHub, call: Call) -> Reply:
    """Remove a branch other than main."""
    if call.values["name"] == "main":
        raise HubError(403, "The branch main is protected")
    return _delete_reference(_repository(hub, call, write=True).branches, call)


def delete_tag(hub: LoopbackHub, call: Call) -> Reply:
    """Remove a tag."""
    return _delete_reference(_repository(hub, call, write=True).tags, call)


def _delete_reference(names: dict[str, str], call: Call) -> Reply:
    if names.pop(call.values["name"], None) is None:
        raise HubError(404, f"Invalid rev id: {call.values['name']}", "RevisionNotFound")
    return Reply({})


def announce_files(hub: LoopbackHub, call: Call) -> Reply:
    """Which files of a commit to come are large ones, and what is there of each already ("preupload")."""
    commit = _repository(hub, call, write=True).at(call.values["revision"])
    files = []
    for asked in call.body.json()["files"]:
        there = commit.files.get(asked["path"])
        large = is_large(asked["path"], asked["size"], base64.b64decode(asked["sample"]))
        files.append(
            {
                "path": asked["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
                "oid": there.etag if there else None,
            }
        )
    return Reply({"files": files, "commitOid": commit.oid})


def large_files(hub: LoopbackHub, call: Call) -> Reply:
    """Where to put the large files that are not here yet (git-lfs batch API)."""
    repository = _repository(hub, call, write=True)
    objects = []
    for asked in call.body.json()["objects"]:
        sha256, size = asked["oid"], asked["size"]
        entry: dict[str, Any] = {"oid": sha256, "size": size}
        if hub.store.size(sha256) != size:
            verify = {"href": f"{hub.endpoint}/{repository.id}.git/info/lfs/objects/verify"}
            entry |= {"authenticated": True, "actions": {"upload": hub.upload_action(sha256, size), "verify": verify}}
        objects.append(entry)
    return Reply({"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"})


def verify_large_file(hub: LoopbackHub, call: Call) -> Reply:
    """Whether a large file has arrived."""
    _repository(hub, call, write=True)
    asked = call.body.json()
    if hub.store.size(asked["oid"]) != asked["size"]:
        raise HubError(404, f"The large file {asked['oid']} has not been uploaded")
    return Reply({})


def complete_parts(hub: LoopbackHub, call: Call) -> Reply:
    """Make a large file of its parts; asked without a token, with the signature that came with the batch."""
    hub.check_signature(call)
    etags = {part["partNumber"]: part["etag"].strip('"') for part in call.body.json()["parts"]}
    hub.store.join_parts(call.values["sha256"], etags)
    return Reply({})


def commit(hub: LoopbackHub, call: Call) -> Reply:
    """A commit: one JSON object a line, the header first."""
    repository = _repository(hub, call, write=True)
    if call.flag("create_pr"):
        raise HubError(400, "The loopback Hub has no pull requests")
    header: dict[str, str] = {}
    changes = Changes()
    for line in filter(None, call.body.read().split(b"\n")):
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "header":
            header = value
        elif item["key"] == "file":
            content = base64.b64decode(value["content"])
            hub.store.add([content])
            changes.added[value["path"]] = StoredFile.regular(content)
        elif item["key"] == "lfsFile":
            size = hub.store.size(value["oid"])
            if size is None:
                raise HubError(400, f"The large file {value['path']} ({value['oid']}) has not been uploaded")
            changes.added[value["path"]] = StoredFile.in_large_storage(value["oid"], size)
        elif item["key"] == "deletedFile":
            changes.deleted_files.append(value["path"])
        elif item["key"] == "deletedFolder":
            changes.deleted_folders.append(value["path"])
        else:
            raise HubError(400, f"The loopback Hub knows no operation {item['key']!r} of a commit")
    assert call.user is not None
    new = repository.commit(
        call.values["revision"],
        changes,
        header["summary"],
        header.get("description", ""),
        call.user,
        header.get("parentCommit"),
    )
    url = f"{hub.endpoint}/{repository.id}/commit/{new.oid}"
    return Reply({"success": True, "commitOid": new.oid, "commitUrl": url, "hookOutput": ""})


def resolve(hub: LoopbackHub, call: Call) -> Reply:
    """A file at a revision: itself, or where its large content is."""
    commit = _repository(hub, call).at(call.values["revision"])
    file = commit.file(call.values["path"])
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
    if not file.large:
        return Reply(file=hub.store.path(file.sha256), headers={**headers, "Content-Type": "text/plain"})
    headers |= {
        "X-Linked-Size": str(file.size),
        "X-Linked-Etag": f'"{file.etag}"',
        "Location": hub.signed(hub.storage_endpoint, "GET", f"/objects/{file.sha256}"),
    }
    return Reply(content=b"Found. Redirecting", status=302, headers=headers)


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_API = f"/api/models/{_REPO}"
_ROUTES: list[tuple[str, re.Pattern[str], Route]] = [
    (method, re.compile(pattern), route)
    for method, pattern, route in (
        ("GET", "/api/whoami-v2", who_am_i),
        ("POST", "/api/validate-yaml", validate_yaml),
        ("POST", "/api/repos/create", create_repository),
        ("DELETE", "/api/repos/delete", delete_repository),
        ("PUT", f"{_API}/settings", change_settings),
        ("GET", _API, information),
        ("GET", f"{_API}/revision/(?P<revision>[^/]+)", information),
        ("GET", f"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", tree),
        ("POST", f"{_API}/paths-info/(?P<revision>[^/]+)", paths_information),
        ("GET", f"{_API}/refs", references),
        ("GET", f"{_API}/commits/(?P<revision>[^/]+)", commits),
        ("POST", f"{_API}/branch/(?P<name>[^/]+)", create_branch),
        ("DELETE", f"{_API}/branch/(?P<name>[^/]+)", delete_branch),
        ("POST", f"{_API}/tag/(?P<revision>[^/]+)", create_tag),
        ("DELETE", f"{_API}/tag/(?P<name>[^/]+)", delete_tag),
        ("POST", f"{_API}/preupload/(?P<revision>[^/]+)", announce_files),
        ("POST", f"{_API}/commit/(?P<revision>[^/]+)", commit),
        ("POST", f"/{_REPO}\\.git/info/lfs/objects/batch", large_files),
        ("POST", f"/{_REPO}\\.git/info/lfs/objects/verify", verify_large_file),
        ("POST", "/api/complete-parts/(?P<sha256>[0-9a-f]{64})", complete_parts),
        ("GET", f"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
        ("HEAD", f"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
    )
]
