"""From training through the Hub into another process: the same scores, and nothing there that should not be.

The base model is on the loopback Hub, too: a student is trained for two steps, pushed as adapter and merged, and
loaded by its id.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from flipped_kd.inference.matcher import FlippedMatcher
from flipped_kd.publishing.errors import PublishError
from flipped_kd.publishing.publish import publish
from flipped_kd.publishing.push import push_folder
from flipped_kd.training.trainer import FlippedDistillationTrainer
from tests.hub.fixtures import connected
from tests.hub.messages import Fault, FaultKind
from tests.hub.server import LoopbackHub
from tests.invariants.training import new_trainer, settings

BASE = "tester/base"
REPO = "tester/matcher"
WRONG_TOKEN = "hf_" + "w" * 34
SECRET_FILES = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "notes.env")


@dataclass
class World:
    """A Hub with a base model, a trainer that has trained on it, and what it saved."""

    hub: LoopbackHub
    api: HfApi
    trainer: FlippedDistillationTrainer
    adapter: Path
    pairs: datasets.Dataset

    @property
    def tuples(self) -> list[tuple[str, str]]:
        return list(zip(self.pairs["text_a"], self.pairs["text_b"], strict=True))

    @property
    def texts(self) -> list[str]:
        return sorted({*self.pairs["text_a"], *self.pairs["text_b"]})


@pytest.fixture(scope="module")
def world(
    student_dir: Path,
    teacher_dir: Path,
    pairs: datasets.Dataset,
    held_out: datasets.Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("round_trip")
    with LoopbackHub(folder / "hub") as hub, connected(hub, folder / "home", hub.token) as api:
        api.create_repo(BASE)
        api.upload_folder(repo_id=BASE, folder_path=student_dir)
        arguments = settings(folder / "run", max_steps=2, hub_token=hub.token, save_strategy="steps", save_steps=1)
        trainer = new_trainer(arguments, BASE, str(teacher_dir), pairs, held_out, None)
        trainer.train()
        adapter = folder / "adapter"
        trainer.save_model(str(adapter))
        # What a plain Trainer and a careless user would have left there, the token in clear among it.
        for name in SECRET_FILES:
            torch.save({"hub_token": trainer.args.hub_token}, adapter / name)
        yield World(hub, api, trainer, adapter, held_out)
    assert not hub.errors, "\n".join(hub.errors)


@pytest.fixture
def repo_id(request: pytest.FixtureRequest) -> str:
    """A repository of the test's own."""
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:8]
    return f"tester/test-{name}"


def other_weights(adapter: Path, folder: Path, factor: float = 2) -> Path:
    """A copy of the adapter that scores otherwise."""
    shutil.copytree(adapter, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: factor * value for name, value in weights.items()}, folder / "adapter_model.safetensors")
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """What is in a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def scores(matcher: FlippedMatcher, world: World) -> np.ndarray:
    """(2, n): answer and similarity."""
    return np.stack(matcher.scores(world.tuples))


def close(found: Any, expected: Any, atol: float) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=atol)


def read_elsewhere(world: World, folder: Path, token: str | None, loads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a fresh process with an empty cache gets; it neither prints nor writes the token."""
    asked = {"pairs": world.tuples, "texts": world.texts, "loads": loads}
    requests, answers, home = folder / "requests.json", folder / "answers.json", folder / "home"
    requests.write_text(json.dumps(asked))
    done = subprocess.run(
        [sys.executable, "-m", "tests.hub.reader", str(requests), str(answers)],
        cwd=Path(__file__).parents[2],
        env=world.hub.environment(home, token) | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    secret = world.hub.token
    assert secret not in done.stdout + done.stderr + answers.read_text()
    assert not [path for path in home.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    found: list[dict[str, Any]] = json.loads(answers.read_text())
    return found


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_scores(world: World, tmp_path: Path) -> None:
    """Adapter and merged model, an older revision, and readers that have never heard of this project."""
    publish(world.adapter, REPO, merged=True, private=True, token=world.hub.token)
    for repo in (REPO, f"{REPO}-merged"):
        world.api.create_tag(repo, tag="v1")
    later = other_weights(world.adapter, tmp_path / "later")
    publish(later, REPO, merged=True, private=True, token=world.hub.token)
    v1 = {"revision": "v1"}
    loads: list[dict[str, Any]] = [
        {"loader": "cross_encoder", "repo": f"{REPO}-merged", "options": v1},
        {"loader": "causal_lm", "repo": f"{REPO}-merged", "options": v1},
        {"loader": "matcher", "repo": REPO, "options": v1},
        {"loader": "matcher", "repo": f"{REPO}-merged", "options": v1},
        {"loader": "matcher", "repo": REPO},
        {"loader": "matcher", "repo": f"{REPO}-merged"},
    ]
    found = read_elsewhere(world, tmp_path, world.hub.token, loads)
    assert not [each for each in found if "error" in each]
    crossed, causal, old, old_merged, new, new_merged = found

    answer, similarity = world.trainer.score_pairs(world.pairs)
    close(old["answer"], answer, 5e-6)  # log-odds of size 3, read in other batches
    close(old["similarity"], similarity, 1e-6)
    assert crossed["alone"] and np.std(crossed["answer"]) > 0.01
    close(crossed["answer"], answer, 1e-5)
    local = FlippedMatcher.from_pretrained(later)
    close([new["answer"], new["similarity"]], scores(local, world), 5e-6)
    assert np.abs(np.subtract(new["answer"], old["answer"])).max() > 1e-2
    for adapter, merged in ((old, old_merged), (new, new_merged)):
        for name in ("answer", "similarity", "vectors"):
            close(merged[name], adapter[name], 1e-5)
    matcher = FlippedMatcher.from_pretrained(world.adapter)
    close(old["vectors"], matcher.encode(world.texts), 1e-6)
    with torch.inference_mode():
        tokens = matcher.tokenizer(world.texts[0], return_tensors="pt")
        close(causal["logits"], matcher.model(**tokens).logits[0, -1], 1e-4)


@pytest.mark.slow
def test_a_fresh_process_without_a_token(world: World, repo_id: str, tmp_path: Path) -> None:
    """A private repository is as one that is not there; the error names it and no token."""
    push_folder(world.adapter, repo_id, private=True, token=world.hub.token)
    loads = [{"loader": "matcher", "repo": repo} for repo in (repo_id, "tester/nothing", BASE)]
    private, nothing, base = read_elsewhere(world, tmp_path, None, loads)
    assert repo_id in private["message"] and "tester/nothing" in nothing["message"]
    assert private["error"] == nothing["error"] and "token" in private["message"]
    # A model that is no matcher: what is missing, by name.
    assert base["error"] == "ValueError" and "pair_prompt.json" in base["message"]


def test_a_sharded_base_is_there_offline(
    world: World, student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers has fetched what it reads; what it never asked for, such as other formats, is not wanted."""
    student.save_pretrained(tmp_path / "base", max_shard_size="40KB")
    for name in ("params.json", "LICENSE.txt", "consolidated.safetensors"):
        (tmp_path / "base" / name).write_bytes(b"not wanted")
    index = {"weight_map": {"weight": "consolidated-00001-of-00002.safetensors"}}
    (tmp_path / "base" / "consolidated.safetensors.index.json").write_text(json.dumps(index))
    assert len([*(tmp_path / "base").glob("model-*.safetensors")]) > 1
    adapter = Path(shutil.copytree(world.adapter, tmp_path / "adapter"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "tester/sharded", "revision": None})
    )
    expected = scores(FlippedMatcher.from_pretrained(world.adapter), world)
    for number, before in enumerate((AutoModelForCausalLM.from_pretrained, lambda _: None)):
        with connected(world.hub, tmp_path / str(number), world.hub.token) as api:
            if not number:
                api.create_repo("tester/sharded")
                api.upload_folder(repo_id="tester/sharded", folder_path=tmp_path / "base")
            before("tester/sharded")
            with monkeypatch.context() as patch:
                patch.setattr(constants, "HF_HUB_OFFLINE", number == 0)
                close(scores(FlippedMatcher.from_pretrained(adapter), world), expected, 5e-6)
        assert not [*(tmp_path / str(number)).rglob("consolidated.safetensors")]


def test_tokens_of_this_process(world: World, repo_id: str, tmp_path: Path) -> None:
    """Given by hand or by the environment; a wrong one is refused, and stands in no error."""
    hub = world.hub
    push_folder(world.adapter, repo_id, private=True, token=hub.token)
    expected = scores(FlippedMatcher.from_pretrained(world.adapter), world)
    with connected(hub, tmp_path / "stranger"):
        close(scores(FlippedMatcher.from_pretrained(repo_id, token=hub.token), world), expected, 5e-6)
    other = hub.add_user("other")
    for number, token in enumerate((None, WRONG_TOKEN, other)):
        with connected(hub, tmp_path / str(number), token):
            with pytest.raises(ValueError, match=repo_id) as reading:
                FlippedMatcher.from_pretrained(repo_id)
            with pytest.raises(PublishError) as writing:
                push_folder(world.adapter, repo_id)
        for error in (reading, writing):
            chain = str(error.getrepr(chain=True))
            assert not [secret for secret in (hub.token, other, WRONG_TOKEN) if secret in chain]


def test_revisions(world: World, repo_id: str, tmp_path: Path) -> None:
    """A branch of its own; an unknown one is named."""
    push_folder(world.adapter, repo_id)
    later = other_weights(world.adapter, tmp_path / "later")
    url = push_folder(later, repo_id, revision="try-two")
    assert "try-two" in url
    commit = world.api.model_info(repo_id, revision="try-two").sha
    for revision, folder in ((None, world.adapter), ("try-two", later), (commit, later)):
        matcher = FlippedMatcher.from_pretrained(repo_id, revision=revision)
        close(scores(matcher, world), scores(FlippedMatcher.from_pretrained(folder), world), 5e-6)
    with pytest.raises(ValueError, match="no-such-revision"):
        FlippedMatcher.from_pretrained(repo_id, revision="no-such-revision")


@pytest.mark.parametrize("step", ["/api/repos/create", "/preupload/", "^/objects/", "/commit/main"])
@pytest.mark.parametrize("kind", ["answer", "cut upload", "lose answer"])
def test_a_broken_push_is_repeated(world: World, repo_id: str, tmp_path: Path, kind: FaultKind, step: str) -> None:
    """Nothing is lost here, nothing is half there, and the same command makes it whole."""
    hub = world.hub
    # Weights that the Hub has never seen, for what is there is not sent again.
    folder = other_weights(world.adapter, tmp_path / "adapter", 1 + int(repo_id[-4:], 16) / 1e6)
    before = hashes(folder)
    fault = hub.faults.plan(Fault(kind, step, 1000, after=100))
    try:
        with pytest.raises(PublishError, match="(?i)repeat") as error:
            push_folder(folder, repo_id, token=hub.token)
    finally:
        hub.faults.clear()
    assert fault.left < 1000
    assert hub.token not in str(error.getrepr(chain=True))
    assert hashes(folder) == before
    there = hub.repositories.get(repo_id)
    names = set(there.at("main").files) - {".gitattributes"} if there else set()
    assert bool(names) == (kind == "lose answer" and step == "/commit/main")
    push_folder(folder, repo_id, token=hub.token)
    pushed = hub.repositories[repo_id]
    for name in ("adapter_model.safetensors", "pair_prompt.json", "lora_encoder.json", "match_score.json"):
        assert hub.content(pushed.at("main"), name) == (folder / name).read_bytes()
    assert [commit.parent is None for commit in pushed.history("main")] == [False, True]


def test_without_the_hub_the_cache_serves(world: World, repo_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    push_folder(world.adapter, repo_id)
    expected = scores(FlippedMatcher.from_pretrained(repo_id), world)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(world.hub.requests)
    close(scores(FlippedMatcher.from_pretrained(repo_id), world), expected, 0)
    assert len(world.hub.requests) == asked


@pytest.mark.parametrize("merged", [False, True])
def test_the_trainer_pushes(world: World, repo_id: str, merged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapter and merged model, both private."""
    monkeypatch.setattr(world.trainer.args, "hub_model_id", repo_id)
    monkeypatch.setattr(world.trainer, "hub_model_id", repo_id)
    world.trainer.push_to_hub(merged=merged, private=True)
    expected = np.stack(world.trainer.score_pairs(world.pairs))
    repos = [repo_id, f"{repo_id}-merged"][: 1 + merged]
    for repo in repos:
        assert world.api.model_info(repo).private
        close(scores(FlippedMatcher.from_pretrained(repo), world), expected, 1e-5)
    assert world.api.repo_exists(f"{repo_id}-merged") == merged


def test_nothing_secret_is_on_the_hub(world: World, repo_id: str) -> None:
    """In all that this file has pushed. The token was in the folder and in the trainer's settings."""
    secret = world.hub.token.encode()
    assert all(secret in (world.adapter / name).read_bytes() for name in SECRET_FILES)
    push_folder(world.adapter, repo_id)
    stored = dict(world.hub.stored())
    assert f"{repo_id}/adapter_model.safetensors" in stored
    assert not [name for name, content in stored.items() if secret in content or content.startswith(b"PK")]
    here = str(world.adapter.parent).encode()
    assert not [name for name, content in stored.items() if here in content]
    allowed = (".safetensors", ".json", ".md", ".jinja", ".png", ".svg", ".gitattributes", ".txt")
    names = [name for name in stored if name.startswith("tester/")]
    assert not [name for name in names if not name.endswith(allowed) or Path(name).name in SECRET_FILES]
    assert not [seen for seen in world.hub.requests if world.hub.token in seen.path + seen.query]
    assert not [seen for seen in world.hub.requests if seen.host == "storage" and seen.authorized]


@pytest.mark.parametrize("name", ["README.md", "pair_prompt.json"])
def test_a_token_in_a_text_is_refused(world: World, repo_id: str, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(world.adapter, folder)
    text = (folder / name).read_text() if (folder / name).exists() else "# A card\n"
    (folder / name).write_text(text + f"\n{world.hub.token}\n")
    asked = len(world.hub.requests)
    with pytest.raises(PublishError, match=name) as error:
        push_folder(folder, repo_id)
    assert world.hub.token not in str(error.getrepr(chain=True))
    assert len(world.hub.requests) == asked
