"""Publishing on a Hub (the loopback one, by the real client): what goes there, what never does, and every refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import load_file, save_file

from flipped_kd.inference.matcher import FlippedMatcher
from flipped_kd.publishing import merge, merge_weights
from flipped_kd.publishing.errors import PublishError, failure_of
from flipped_kd.publishing.files import CROSS_ENCODER_FILES, uploadable
from flipped_kd.publishing.publish import publish
from flipped_kd.publishing.push import push_folder
from flipped_kd.utils.json_files import read_json_object
from flipped_kd.utils.redaction import redact
from tests.adapters import LINEAR, MIXED_PAIRS, tied_adapter
from tests.hub.server import LoopbackHub

REPO = "tester/matcher"
ADAPTER_FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "lora_encoder.json",
    "match_score.json",
    "pair_prompt.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
CARD = "---\n{metadata}\n---\n\n# A matcher\n"


@pytest.fixture
def adapter(tmp_path: Path, tokenizer: Any) -> Path:
    return tied_adapter(tmp_path, tokenizer)


def there(hub: LoopbackHub, repo_id: str, revision: str = "main") -> set[str]:
    return set(hub.repositories[repo_id].at(revision).files) - {".gitattributes"}


def change_weights(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({name: 2 * weight for name, weight in load_file(path).items()}, path, metadata={"format": "pt"})


# ---- What goes there ----


def test_adapter_and_merged_model(adapter: Path, tmp_path: Path, hub: LoopbackHub, online: HfApi) -> None:
    report = publish(adapter, REPO, merged=True)
    assert report.adapter_url == f"{hub.endpoint}/{REPO}" and report.merged_url == f"{hub.endpoint}/{REPO}-merged"
    assert there(hub, REPO) == ADAPTER_FILES
    merged = tmp_path / "adapter-merged"
    # What is kept of the adapter for later cards stays here.
    names = {path.relative_to(merged).as_posix() for path in merged.rglob("*") if path.is_file()}
    names -= {"_adapter/adapter_config.json"}
    assert there(hub, f"{REPO}-merged") == names and names > set(CROSS_ENCODER_FILES)
    expected = FlippedMatcher.from_pretrained(adapter, device="cpu").scores(MIXED_PAIRS)
    base = read_json_object(adapter / "adapter_config.json")["base_model_name_or_path"]  # a folder: told to nobody
    for repo_id, named in ((REPO, base), (f"{REPO}-merged", None)):
        found = FlippedMatcher.from_pretrained(repo_id, base_model=named, device="cpu").scores(MIXED_PAIRS)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_repeated_it_does_nothing_again(adapter: Path, tmp_path: Path, hub: LoopbackHub, online: HfApi) -> None:
    """The merge is used again as long as the adapter is the same; equal files make no commit."""
    first = publish(adapter, REPO, merged=True)
    weights = tmp_path / "adapter-merged" / "model.safetensors"
    made = weights.stat().st_mtime_ns
    assert publish(adapter, REPO, merged=True) == first
    assert weights.stat().st_mtime_ns == made
    for repo_id in (REPO, f"{REPO}-merged"):
        assert len(list(hub.repositories[repo_id].history("main"))) == 2  # the first one is the Hub's
    change_weights(adapter)
    second = publish(adapter, REPO, merged=True)
    assert second.merge is not None and first.merge is not None
    assert second.merge.fingerprint != first.merge.fingerprint
    assert weights.stat().st_mtime_ns > made
    assert len(list(hub.repositories[f"{REPO}-merged"].history("main"))) == 3
    made = weights.stat().st_mtime_ns
    base = tmp_path / "base" / "model.safetensors"
    save_file({name: 1.5 * weight for name, weight in load_file(base).items()}, base, metadata={"format": "pt"})
    publish(adapter, REPO, merged=True)
    assert weights.stat().st_mtime_ns > made


def test_a_push_of_the_other_kind_leaves_nothing_that_readers_would_take(
    adapter: Path, tmp_path: Path, hub: LoopbackHub, online: HfApi
) -> None:
    """A repository with both would be read as an adapter, whatever was pushed last."""
    merged = tmp_path / "merged"
    merge.merge_adapter(adapter, merged)
    weights = (
        {"adapter_config.json", "adapter_model.safetensors"},
        {"config.json", "model.safetensors", "modules.json"},
    )
    for folder, mine, others in ((adapter, *weights), (merged, *weights[::-1]), (adapter, *weights)):
        push_folder(folder, REPO)
        assert mine <= there(hub, REPO) and not others & there(hub, REPO)
        assert ("merge_report.json" in there(hub, REPO)) is (folder == merged)


def test_what_an_earlier_push_left_is_taken_away(
    adapter: Path, tmp_path: Path, hub: LoopbackHub, online: HfApi
) -> None:
    """A stale match score or layout would be acted on by readers; files of others stay."""
    publish(adapter, REPO, merged=True)
    merged = tmp_path / "adapter-merged"
    for repo_id in (REPO, f"{REPO}-merged"):
        online.upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id=repo_id)
    before = there(hub, f"{REPO}-merged")
    (adapter / "match_score.json").unlink()
    for name in CROSS_ENCODER_FILES:
        (merged / name).unlink()
    push_folder(adapter, REPO)
    push_folder(merged, f"{REPO}-merged")
    assert there(hub, REPO) == ADAPTER_FILES - {"match_score.json"} | {"notes.txt"}
    assert there(hub, f"{REPO}-merged") == before - set(CROSS_ENCODER_FILES)


def test_only_what_readers_need_is_uploadable(adapter: Path) -> None:
    wanted = {str(path) for path in uploadable(adapter)}
    unwanted = ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin", ".env"]
    unwanted += ["trainer_state.json", "model.pkl", "notes.txt", "report.json", "config.yaml", "x.py", "x.safetensors"]
    unwanted += [
        "checkpoint-3/adapter_config.json",
        "_cache/plots.png",
        "runs/x.png",
        "sub/config.json",
        "plots/x.bin",
    ]
    more = [
        "results.png",
        "plots/loss.svg",
        "LICENSE",
        "LICENSE.txt",
        "spiece.model",
        "additional_chat_templates/x.jinja",
    ]
    for name in (*unwanted, *more):
        (adapter / name).parent.mkdir(exist_ok=True)
        (adapter / name).write_text("x")
    assert {str(path) for path in uploadable(adapter)} == wanted | set(more)
    assert PurePosixPath("plots/loss.svg") in uploadable(adapter)


def test_branches(adapter: Path, hub: LoopbackHub, online: HfApi) -> None:
    url = publish(adapter, REPO, revision="trial").adapter_url
    assert url.endswith(f"{REPO}/tree/trial")
    assert there(hub, REPO, "trial") == ADAPTER_FILES and there(hub, REPO) == set()
    folder = snapshot_download(REPO, revision="trial")
    assert (Path(folder) / "pair_prompt.json").read_bytes() == (adapter / "pair_prompt.json").read_bytes()


# ---- What is refused ----


def test_private_is_not_public(adapter: Path, hub: LoopbackHub, online: HfApi) -> None:
    online.create_repo(REPO)
    with pytest.raises(PublishError, match="there and public.*update_repo_settings"):
        publish(adapter, REPO, private=True)
    assert there(hub, REPO) == set()
    publish(adapter, f"{REPO}-2", private=True)
    assert online.model_info(f"{REPO}-2").private
    publish(adapter, f"{REPO}-2")  # whatever it is, it stays
    assert online.model_info(f"{REPO}-2").private


def test_nothing_is_uploaded_if_the_merge_disagrees(
    tmp_path: Path, tokenizer: Any, hub: LoopbackHub, online: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tied_adapter(tmp_path, tokenizer, target_modules=[*LINEAR, "embed_tokens"])
    monkeypatch.setattr(merge_weights, "_untie", lambda base: False)
    with pytest.raises(PublishError, match="differs"):
        publish(adapter, REPO, merged=True)
    assert not hub.requests and not (tmp_path / "adapter-merged").exists()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("base_model: /home/me/base", "base_model.*path of this machine"),
        ("base_model: outputs/run/base", "base_model.*path of this machine"),
        ("datasets:\n- ~/data/pairs", "datasets.*path of this machine"),
        ("widget:\n- text: C:\\data", "widget.text.*path of this machine"),
        ("tags: [a", "invalid"),
        ("model-index:\n- name: x\n  results: 3", "invalid"),
    ],
)
def test_bad_metadata_is_refused_before_the_hub_is_asked(
    adapter: Path, hub: LoopbackHub, online: HfApi, metadata: str, message: str
) -> None:
    (adapter / "README.md").write_text(CARD.format(metadata=metadata))
    with pytest.raises(PublishError, match=f"(?s){message}.*Nothing was uploaded"):
        push_folder(adapter, REPO)
    assert not hub.requests
    (adapter / "README.md").write_text(CARD.format(metadata="base_model: Qwen/Qwen2.5-0.5B\nlicense: mit"))
    push_folder(adapter, REPO)
    assert online.model_info(REPO).card_data.license == "mit"  # type: ignore[union-attr]


def test_bad_metadata_are_refused_before_the_merge(adapter: Path, hub: LoopbackHub, online: HfApi) -> None:
    (adapter / "README.md").write_text(CARD.format(metadata="license: mit: x"))
    with pytest.raises(PublishError, match=r"metadata at the top of .*README\.md is invalid"):
        publish(adapter, REPO, merged=True)
    assert not hub.requests and not adapter.with_name("adapter-merged").exists()


@pytest.mark.parametrize(
    "name", ["pair_prompt.json", "lora_encoder.json", "adapter_model.safetensors", "tokenizer_config.json"]
)
def test_missing_contracts_are_named(adapter: Path, hub: LoopbackHub, online: HfApi, name: str) -> None:
    (adapter / name).unlink()
    for merged in (False, True):
        with pytest.raises(ValueError, match=name):
            publish(adapter, REPO, merged=merged)
    with pytest.raises(ValueError, match=name):
        push_folder(adapter, REPO)
    assert not hub.requests


def test_unusable_arguments(adapter: Path, tmp_path: Path, hub: LoopbackHub, online: HfApi) -> None:
    for repo_id in ("a/b/c", "tester/with space", "tester/x.git", ""):
        with pytest.raises(ValueError, match="repo_id"):
            publish(adapter, repo_id)
    with pytest.raises(ValueError, match="is no folder"):
        push_folder(tmp_path / "nowhere", REPO)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither adapter_config.json nor config.json"):
        push_folder(tmp_path / "empty", REPO)
    with pytest.raises(ValueError, match="merged model"):
        publish(publish_locally(adapter), REPO)
    for token in ("hf_" + "a" * 34 + "\n", "", "hf_ü" + "a" * 34):
        with pytest.raises(ValueError, match="token") as error:
            push_folder(adapter, REPO, token=token)
        assert "aaaa" not in str(error.getrepr(chain=True))
    assert not hub.requests


def publish_locally(adapter: Path) -> Path:
    return merge.merge_adapter(adapter, adapter.with_name("merged")).folder


# ---- Tokens ----


@pytest.mark.parametrize("name", ["README.md", "tokenizer_config.json", "adapter_config.json"])
def test_a_token_in_a_file_is_found_before_any_work(
    adapter: Path, tmp_path: Path, hub: LoopbackHub, online: HfApi, name: str
) -> None:
    """Any token by its form, and the one in use whatever its form."""
    path = adapter / name
    before = path.read_bytes() if path.exists() else b"# A card\n"
    own = f"own-secret-{100 + 23}"
    for secret, token in (("hf_" + "Zz9" * 12, None), (hub.token, None), (own, own)):
        path.write_bytes(before + f"\n{secret}\n".encode())
        with pytest.raises(PublishError, match=name) as error:
            publish(adapter, REPO, merged=True, token=token)
        assert secret not in str(error.getrepr(chain=True))
    assert not hub.requests and not (tmp_path / "adapter-merged").exists()


def test_errors_of_the_client_lose_their_tokens(hub: LoopbackHub, online: HfApi) -> None:
    other = "hf_" + "q" * 34
    try:
        raise OSError(f"Illegal header value b'Bearer {hub.token}' or {other} or own-secret-123")
    except OSError as cause:
        error = failure_of(cause, "a push", "own-secret-123")
    assert "a push failed" in str(error) and "Illegal header" in str(error)
    for secret in (hub.token, other, "own-secret-123"):
        assert secret not in str(error) and secret not in redact(f"x{secret}", "own-secret-123")
    assert error.__cause__ is None and error.__context__ is None


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "hf auth login"), (403, "write access"), (404, "name"), (503, "Repeat")]
)
def test_remedies(adapter: Path, hub: LoopbackHub, online: HfApi, status: int, remedy: str) -> None:
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    hub.faults.answer("/commit/main", status, times=100)
    with pytest.raises(PublishError, match=f"{REPO}.*Nothing on this machine was changed.*{remedy}") as error:
        push_folder(adapter, REPO)
    assert hub.token not in str(error.getrepr(chain=True))
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before
    hub.faults.clear()
    push_folder(adapter, REPO)
    assert there(hub, REPO) == ADAPTER_FILES - {"README.md"}


def test_a_broken_push_of_a_merged_model_goes_on_where_it_was(
    adapter: Path, tmp_path: Path, hub: LoopbackHub, online: HfApi
) -> None:
    """The adapter is there already and the merge is made: only what is missing is sent."""
    hub.faults.cut_upload(f"/api/models/{REPO}-merged/commit", times=100)
    with pytest.raises(PublishError, match="Repeat"):
        publish(adapter, REPO, merged=True)
    hub.faults.clear()
    assert there(hub, REPO) == ADAPTER_FILES and there(hub, f"{REPO}-merged") == set()
    made = (tmp_path / "adapter-merged" / "model.safetensors").stat().st_mtime_ns
    large = len(hub.asked("^/objects/", "PUT"))
    assert large >= 2
    publish(adapter, REPO, merged=True)
    assert (tmp_path / "adapter-merged" / "model.safetensors").stat().st_mtime_ns == made
    assert len(hub.asked("^/objects/", "PUT")) == large
    assert there(hub, f"{REPO}-merged") > set(CROSS_ENCODER_FILES)


def test_a_local_base_is_warned_of(adapter: Path, online: HfApi, caplog: pytest.LogCaptureFixture) -> None:
    local = read_json_object(adapter / "adapter_config.json")["base_model_name_or_path"]
    push_folder(adapter, REPO)
    assert "base_model=" in caplog.text
    sent = online.hf_hub_download(REPO, "adapter_config.json", local_dir=adapter.parent / "read")
    assert Path(local).is_dir() and local not in Path(sent).read_text()
    assert read_json_object(Path(sent)) == read_json_object(adapter / "adapter_config.json") | {
        "base_model_name_or_path": None
    }
    caplog.clear()
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "Qwen/Qwen2.5-0.5B"}))
    push_folder(adapter, REPO)
    assert "base_model=" not in caplog.text
    shutil.copy(path, adapter / "training_args.bin")
    push_folder(adapter, REPO)
    assert "training_args.bin" in caplog.text


def test_a_name_without_an_owner_is_written_whole_into_the_card(
    adapter: Path, hub: LoopbackHub, online: HfApi
) -> None:
    """Its readers load the name that the snippets give."""
    publish(adapter, "matcher")
    assert f'from_pretrained("{REPO}"' in (adapter / "README.md").read_text(encoding="utf-8")
    assert there(hub, REPO) == ADAPTER_FILES
