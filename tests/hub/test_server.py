"""The loopback Hub, asked by the real client: what is pushed comes back, at every revision and through every fault."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    file_exists,
    get_session,
    hf_hub_download,
    hf_hub_url,
    model_info,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from tests.hub.messages import Fault, FaultKind
from tests.hub.server import LoopbackHub

REPO = "tester/model"
CARD = b"---\nlicense: apache-2.0\nbase_model: org/base\ntags: [text-matching]\n---\n# A model\n"
Files = dict[str, bytes]


def some_files(seed: int = 0) -> Files:
    """Small and large files, text and binary, empty, in a folder, with a name that needs quoting."""
    random_bytes = random.Random(seed).randbytes
    return {
        "README.md": CARD,
        "config.json": b'{"seed": %d}' % seed,
        "empty.json": b"",
        "model.safetensors": random_bytes(300_000),
        "plots/loss curve #1.png": b"\x89PNG\0" + random_bytes(2_000),
        "1_LogitScore/config.json": b"{}",
    }


def write(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder: str | Path) -> Files:
    """The files of a snapshot, without what the Hub added."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: content for name, content in found.items() if name != ".gitattributes"}


def push(api: HfApi, folder: Path, files: Files, repo_id: str = REPO) -> str:
    """Create the repository, upload, and return the commit's id."""
    api.create_repo(repo_id, exist_ok=True)
    return api.upload_folder(repo_id=repo_id, folder_path=write(folder, files)).oid


def pull(revision: str | None = None, **options: object) -> Files:
    return read(snapshot_download(REPO, revision=revision, **options))  # type: ignore[call-overload]


def assert_token_kept(hub: LoopbackHub) -> None:
    """No token in what is stored nor in any address, and none sent to the storage host."""
    assert hub.requests
    assert not [name for name, content in hub.stored() if hub.token.encode() in content]
    assert not [seen for seen in hub.requests if hub.token in seen.path + seen.query]
    assert not [seen for seen in hub.requests if seen.host == "storage" and seen.authorized]


def test_files_come_back(hub: LoopbackHub, online: HfApi, tmp_path: Path) -> None:
    files = some_files()
    oid = push(online, tmp_path, files)
    assert pull() == files
    for name, content in files.items():
        assert Path(hf_hub_download(REPO, name, revision=oid, local_dir=tmp_path / "one")).read_bytes() == content
    info = model_info(REPO, files_metadata=True)
    assert info.sha == oid and info.card_data is not None and info.card_data.base_model == "org/base"
    large = {each.rfilename for each in info.siblings or [] if each.lfs is not None}
    assert large == {"model.safetensors", "plots/loss curve #1.png"}
    assert {each.rfilename: each.size for each in info.siblings or [] if each.rfilename in files} == {
        name: len(content) for name, content in files.items()
    }
    assert len(hub.asked("^/objects/", "PUT")) == len(large)
    assert_token_kept(hub)


def test_listings_agree_with_the_files(hub: LoopbackHub, online: HfApi, tmp_path: Path) -> None:
    files = some_files()
    push(online, tmp_path, files)
    names = {".gitattributes", *files}
    assert set(online.list_repo_files(REPO)) == names
    top = {entry.path for entry in online.list_repo_tree(REPO)}
    assert top == {name.split("/")[0] for name in names}
    assert [entry.path for entry in online.list_repo_tree(REPO, "plots")] == ["plots/loss curve #1.png"]
    with pytest.raises(EntryNotFoundError):
        list(online.list_repo_tree(REPO, "nowhere"))
    asked = online.get_paths_info(REPO, ["config.json", "plots", "nowhere"])
    assert {entry.path for entry in asked} == {"config.json", "plots"}
    assert online.verify_repo_checksums(REPO, local_dir=snapshot_download(REPO)).mismatches == []
    assert file_exists(REPO, "config.json") and not file_exists(REPO, "nowhere.json")


@pytest.mark.parametrize("size", [1, 65_536, 65_537, 131_072, 200_000])
def test_large_files_in_parts(hub: LoopbackHub, online: HfApi, tmp_path: Path, size: int) -> None:
    hub.part_size = 65_536
    files = {"model.safetensors": random.Random(size).randbytes(size)}
    fault = hub.faults.answer("^/parts/.*/2$", status=503)
    push(online, tmp_path, files)
    assert pull() == files
    parts = -(-size // 65_536) if size > 65_536 else 0
    assert fault.left == (parts < 2)
    assert len(hub.asked("^/parts/")) == parts + (parts >= 2)
    assert len(hub.asked("^/objects/", "PUT")) == (not parts)
    assert_token_kept(hub)


def test_every_revision_is_what_was_committed(hub: LoopbackHub, online: HfApi, tmp_path: Path) -> None:
    """By commit, its first digits, branch and tag; later commits change none of it."""
    online.create_repo(REPO)
    steps: list[tuple[Files, list[str]]] = [
        ({"config.json": b"1", "a/b/large.safetensors": b"2" * 5000}, []),
        ({"config.json": b"3", "a/b/text.txt": b"4", "a/one.json": b"5"}, []),
        ({"model.safetensors": b"6"}, ["a/one.json"]),
        ({"a/b/large.safetensors": b"7"}, ["config.json"]),
        ({}, ["a/"]),
        ({"a/b/text.txt": b"8"}, []),
    ]
    state: Files = {}
    expected: dict[str, Files] = {}
    for step, (new, gone) in enumerate(steps):
        adds = [CommitOperationAdd(name, content) for name, content in new.items()]
        deletes = [CommitOperationDelete(name) for name in gone]
        done = online.create_commit(REPO, [*adds, *deletes], commit_message=f"step {step}")
        online.create_tag(REPO, tag=f"step-{step}")
        state = {name: content for name, content in state.items() if not any(name.startswith(old) for old in gone)}
        state |= new
        expected |= {f"step-{step}": dict(state), done.oid: dict(state)}
    online.create_branch(REPO, branch="try/this", revision="step-3")
    on_branch = online.upload_file(
        repo_id=REPO, path_or_fileobj=b"{}", path_in_repo="only-here.json", revision="try/this"
    )
    expected |= {"main": state, "try/this": expected["step-3"] | {"only-here.json": b"{}"}}
    for revision, files in expected.items():
        assert pull(revision) == files
    refs = online.list_repo_refs(REPO)
    assert {branch.name: branch.target_commit for branch in refs.branches}["try/this"] == on_branch.oid
    assert {tag.name for tag in refs.tags} == {f"step-{step}" for step in range(len(steps))}
    titles = [each.title for each in online.list_repo_commits(REPO)]
    assert titles == [*(f"step {step}" for step in reversed(range(len(steps)))), "initial commit"]
    assert model_info(REPO, revision=on_branch.oid[:7]).sha == on_branch.oid
    online.delete_branch(REPO, branch="try/this")
    online.delete_tag(REPO, tag="step-0")
    for revision in ("try/this", "step-0"):
        with pytest.raises(RevisionNotFoundError):
            model_info(REPO, revision=revision)
    assert pull(on_branch.oid, force_download=True) == expected["try/this"]


def test_the_same_push_again_changes_nothing(hub: LoopbackHub, online: HfApi, tmp_path: Path) -> None:
    first = push(online, tmp_path, some_files())
    sent = len(hub.asked("^/objects/", "PUT"))
    assert push(online, tmp_path, some_files()) == first
    moved = {"other.safetensors": some_files()["model.safetensors"]}
    push(online, tmp_path / "moved", moved)
    assert len(hub.asked("^/objects/", "PUT")) == sent
    assert pull() == some_files() | moved


def test_a_commit_on_a_head_that_moved(hub: LoopbackHub, online: HfApi, tmp_path: Path) -> None:
    first = push(online, tmp_path, some_files(0))
    second = push(online, tmp_path, some_files(1))
    late = [CommitOperationAdd("late.json", b"1")]
    with pytest.raises(HfHubHTTPError, match="412"):
        online.create_commit(REPO, late, commit_message="late", parent_commit=first)
    assert pull() == some_files(1)
    online.create_commit(REPO, late, commit_message="late", parent_commit=second)
    assert pull() == some_files(1) | {"late.json": b"1"}


def test_private_repositories(hub: LoopbackHub, online: HfApi, tmp_path: Path) -> None:
    online.create_repo(REPO, private=True)
    push(online, tmp_path, some_files())
    other = hub.add_user("other")
    requests: list[Callable[[str | bool], object]] = [
        lambda token: model_info(REPO, token=token),
        lambda token: hf_hub_download(REPO, "config.json", token=token, cache_dir=tmp_path / "cache"),
        lambda token: snapshot_download(REPO, token=token, cache_dir=tmp_path / "cache"),
        lambda token: online.list_repo_refs(REPO, token=token),
        lambda token: online.upload_file(repo_id=REPO, path_or_fileobj=b"1", path_in_repo="new.json", token=token),
    ]
    for request in requests:
        for token, status in ((False, 401), (other, 404)):
            with pytest.raises(RepositoryNotFoundError) as error:
                request(token)
            assert error.value.response.status_code == status
        with pytest.raises(HfHubHTTPError, match="401") as wrong:
            request("hf_wrong")
        assert "hf_wrong" not in str(wrong.value)
        assert not (tmp_path / "cache").exists() or not read(tmp_path / "cache")
    for request in requests:
        request(hub.token)
    online.update_repo_settings(REPO, private=False)
    assert model_info(REPO, token=False).private is False
    with pytest.raises(HfHubHTTPError, match="403"):
        online.upload_file(repo_id=REPO, path_or_fileobj=b"1", path_in_repo="new.json", token=other)
    with pytest.raises(HfHubHTTPError, match="403"):
        online.create_repo("tester/theirs", token=other)
    assert_token_kept(hub)


def test_who_am_i(hub: LoopbackHub, online: HfApi) -> None:
    assert online.whoami()["name"] == "tester"
    assert online.create_repo("named-alone").repo_id == "tester/named-alone"
    hub.revoke(hub.token)
    with pytest.raises(HfHubHTTPError, match="token") as error:
        online.whoami()
    assert hub.token not in str(error.value)
    with pytest.raises(HfHubHTTPError, match="401"):
        online.create_repo(REPO)


def test_what_is_not_there(hub: LoopbackHub, online: HfApi, tmp_path: Path) -> None:
    push(online, tmp_path, some_files())
    for missing in ("tester/nothing", "nobody/nothing", "nothing"):
        with pytest.raises(RepositoryNotFoundError):
            model_info(missing)
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(missing, "config.json")
    with pytest.raises(RevisionNotFoundError):
        snapshot_download(REPO, revision="nowhere")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, "config.json", revision="0" * 40)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "nothing.json")
    with pytest.raises(EntryNotFoundError):
        online.delete_file("nothing.json", REPO)
    with pytest.raises(HfHubHTTPError, match="409"):
        online.create_repo(REPO)
    assert online.create_repo(REPO, exist_ok=True).repo_id == REPO
    online.delete_repo(REPO)
    with pytest.raises(RepositoryNotFoundError):
        model_info(REPO)
    with pytest.raises(RepositoryNotFoundError):
        online.delete_repo(REPO)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("span", ["0-0", "3-7", "5-", "-4", "2-999999999"])
def test_ranges(hub: LoopbackHub, online: HfApi, tmp_path: Path, name: str, span: str) -> None:
    content = some_files()[name]
    push(online, tmp_path, {name: content})
    start, end = span.split("-")
    expected = content[int(start) : int(end) + 1 if end else None] if start else content[-int(end) :]
    response = get_session().get(hf_hub_url(REPO, name), headers={"Range": f"bytes={span}"})
    assert (response.status_code, response.content) == (206, expected)
    beyond = get_session().get(hf_hub_url(REPO, name), headers={"Range": f"bytes={len(content)}-"})
    assert beyond.status_code == 416


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ("base_model: /home/me/model", "base_model"),
        ("base_model: [a, b", "YAML"),
        ("tags: {a: 1}", "tags"),
        ("model-index: [{name: a, results: [{task: {type: b}, metrics: []}]}]", "dataset"),
    ],
)
def test_a_card_that_the_hub_refuses(
    hub: LoopbackHub, online: HfApi, tmp_path: Path, metadata: str, complaint: str
) -> None:
    files = some_files() | {"README.md": f"---\n{metadata}\n---\n".encode()}
    with pytest.raises(ValueError, match=complaint):
        push(online, tmp_path, files)
    assert not hub.asked("/preupload/|/commit/")


@pytest.mark.parametrize("step", ["/preupload/", "/info/lfs/objects/batch", "^/objects/", "/info/lfs/objects/verify"])
@pytest.mark.parametrize("kind", ["answer", "cut upload", "lose answer"])
def test_the_client_asks_again(hub: LoopbackHub, online: HfApi, tmp_path: Path, step: str, kind: FaultKind) -> None:
    fault = hub.faults.plan(Fault(kind, step, 3, after=100))
    push(online, tmp_path, some_files())
    assert fault.left == 0
    assert pull() == some_files()


@pytest.mark.parametrize("step", ["/api/repos/create", "^/objects/", "/commit/main"])
@pytest.mark.parametrize("kind", ["answer", "cut upload", "lose answer"])
def test_a_broken_push_can_be_repeated(
    hub: LoopbackHub, online: HfApi, tmp_path: Path, step: str, kind: FaultKind
) -> None:
    """What the client does not repeat, or not often enough: nothing of it is seen, and the next push is whole."""
    before = {"config.json": b"before", "model.safetensors": b"before"}
    push(online, tmp_path / "before", before)
    hub.faults.plan(Fault(kind, step, 1000, after=100))
    with pytest.raises(Exception) as error:  # noqa: B017 - several types, of the client and of its HTTP library
        push(online, tmp_path / "after", some_files())
    assert hub.token not in str(error.value)
    hub.faults.clear()
    lost = kind == "lose answer" and step == "/commit/main"
    assert pull() == (some_files() if lost else before)
    # no half of a content is kept
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in hub.store.folder.iterdir())
    assert not list((hub.folder / "uploads").iterdir())
    push(online, tmp_path / "after", some_files())
    assert pull() == some_files()
    assert len(online.list_repo_commits(REPO)) == 3
    assert_token_kept(hub)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_download_that_is_cut_goes_on(
    hub: LoopbackHub, online: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """From where it was: the client keeps whole pieces of 10 MB, made small here."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    files = some_files()
    push(online, tmp_path, files)
    where = "^/objects/" if name == "model.safetensors" else f"/resolve/.*/{name}"
    fault = hub.faults.cut_download(where, after=len(files[name]) // 4, times=2)
    assert Path(hf_hub_download(REPO, name)).read_bytes() == files[name]
    assert fault.left == 0
    again = 206 if len(files[name]) > 1000 else 200
    assert [seen.status for seen in hub.asked(where, "GET")] == [200, again, again]


def test_a_download_that_fails_can_be_repeated(hub: LoopbackHub, online: HfApi, tmp_path: Path) -> None:
    push(online, tmp_path, some_files())
    hub.faults.answer("/api/models/", times=1)
    with pytest.raises(LocalEntryNotFoundError):
        snapshot_download(REPO)
    hub.faults.answer("^/objects/", method="GET", times=1)
    with pytest.raises(HfHubHTTPError, match="500"):
        snapshot_download(REPO)
    assert pull() == some_files()
    # What is in the cache serves while the Hub is away.
    hub.faults.answer(".", times=1000)
    assert pull() == some_files()


def test_transformers_loads_from_it(
    hub: LoopbackHub, online: HfApi, student_dir: Path, student: Qwen2ForCausalLM
) -> None:
    online.create_repo(REPO, private=True)
    online.upload_folder(repo_id=REPO, folder_path=student_dir)
    loaded = AutoModelForCausalLM.from_pretrained(REPO)
    expected = student.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_another_process(hub: LoopbackHub, online: HfApi, tmp_path: Path) -> None:
    """The environment for a subprocess: with a token it reads a private repository, without one it does not."""
    online.create_repo(REPO, private=True)
    push(online, tmp_path, some_files())
    script = f"import huggingface_hub as h; print(h.snapshot_download({REPO!r}))"
    command = [sys.executable, "-c", script]
    env = hub.environment(tmp_path / "home", hub.token)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip())
    assert folder.is_relative_to(tmp_path / "home") and read(folder) == some_files()
    env = hub.environment(tmp_path / "other home")
    refused = subprocess.run(command, env=env, capture_output=True, text=True)
    assert refused.returncode != 0 and "RepositoryNotFoundError" in refused.stderr
    assert hub.token not in done.stdout + done.stderr + refused.stdout + refused.stderr


def test_this_process_stays_offline_by_itself(hub: LoopbackHub) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(OfflineModeIsEnabled):
        HfApi(endpoint=hub.endpoint, token=hub.token).whoami()
    assert not hub.requests
