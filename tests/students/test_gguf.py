"""A student from GGUF: read, trained, merged and pushed as any other; broken files are refused first."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import datasets
import gguf
import numpy as np
import pytest
import torch
from gguf import RopeScalingType
from huggingface_hub import HfApi
from sentence_transformers import CrossEncoder
from transformers import AutoModelForCausalLM

from flipped_kd import FlippedMatcher, PublishError, merge_adapter, push_folder
from flipped_kd.experiments.arguments import DataArguments, StudentArguments
from flipped_kd.experiments.compare import run_comparison
from flipped_kd.publishing.card import write_card
from flipped_kd.publishing.publish import publish
from flipped_kd.students.gguf import GGUF_FILE, GgufBase, gguf_path, is_gguf, load_gguf_config
from flipped_kd.students.loading import load_student, load_tokenizer
from tests.gguf_files import write_gguf
from tests.hub.server import LoopbackHub
from tests.invariants.training import settings

PAIRS = [
    ("where is my card", "how long does my card take"),
    ("cash", "a refund"),
    ("the app", "cancel the app please"),
]


@pytest.fixture(scope="module")
def folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "tiny.Q8_0.gguf", tokenizer)
    return folder


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return folder / "tiny.Q8_0.gguf"


@pytest.fixture
def adapter(file: Path, build: Any, tmp_path: Path) -> Path:
    trainer = build(model=str(file), processing_class=None, max_steps=2, learning_rate=1e-2)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def test_names_of_gguf_files() -> None:
    assert is_gguf("a.gguf") and is_gguf(Path("b/c.Q4_1.GGUF")) and is_gguf("owner/name:file.gguf")
    assert not is_gguf("owner/name") and not is_gguf("a.gguf/") and not is_gguf(None) and not is_gguf(object())


def test_the_weights_are_the_originals_but_for_rounding(file: Path, tokenizer: Any, tmp_path: Path) -> None:
    original = write_gguf(tmp_path / "again.gguf", tokenizer)
    model = load_student(file, dtype="float32")
    assert type(model) is type(original) and model.dtype == torch.float32
    ids = torch.tensor([[10, 20, 30, 40]])
    with torch.no_grad():
        found, wanted = model(ids).logits, original(ids).logits
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()
    assert not torch.equal(found, wanted)


def test_it_saves_as_an_ordinary_model(file: Path, tmp_path: Path) -> None:
    model = load_student(file, dtype="float32")
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert not hasattr(again.config, "quantization_config")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


def test_its_tokenizer_is_the_one_inside(file: Path, tokenizer: Any) -> None:
    found = load_tokenizer(file)
    text = "where is my card<|im_end|>"
    assert found(text).input_ids == tokenizer(text).input_ids and found.chat_template


def test_it_trains_and_the_adapter_names_its_file(adapter: Path, file: Path) -> None:
    recorded = GgufBase.from_pretrained(adapter)
    assert recorded == gguf_path(file)[1]
    assert recorded.file == "tiny.Q8_0.gguf" and recorded.repo_id is None and recorded.name == "tiny"
    assert len(recorded.sha256) == 64
    assert FlippedMatcher.from_pretrained(adapter).predict(PAIRS).shape == (3,)


def test_it_resumes(file: Path, build: Any) -> None:
    options = {"model": str(file), "processing_class": None, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = build(**options)
    whole.train()
    shutil.rmtree(Path(whole.args.output_dir) / "checkpoint-4")
    resumed = build(**options)
    resumed.train(resume_from_checkpoint=True)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_it_merges_and_cross_encoder_reads_it(adapter: Path, tmp_path: Path) -> None:
    report = merge_adapter(adapter, tmp_path / "merged")
    assert report.sentence_transformers and report.base_model is None
    adapted, merged = (FlippedMatcher.from_pretrained(path) for path in (adapter, tmp_path / "merged"))
    np.testing.assert_allclose(merged.predict(PAIRS), adapted.predict(PAIRS), atol=1e-5)
    np.testing.assert_allclose(merged.encode(["cash"]), adapted.encode(["cash"]), atol=1e-5)
    peer = CrossEncoder(str(tmp_path / "merged"), device="cpu").predict(PAIRS)
    np.testing.assert_allclose(peer, adapted.predict(PAIRS, score="answer"), atol=1e-5)


def test_another_file_of_that_name_is_noticed(adapter: Path, folder: Path, tmp_path: Path, tokenizer: Any) -> None:
    other = tmp_path / "tiny.Q8_0.gguf"
    other.write_bytes((folder / "tiny.Q8_0.gguf").read_bytes() + b"\0")
    with pytest.raises(ValueError, match="the adapter was trained on tiny.Q8_0.gguf"):
        FlippedMatcher.from_pretrained(adapter, base_model=other)


def test_an_original_in_full_precision_may_take_its_place(adapter: Path, tokenizer: Any, tmp_path: Path) -> None:
    write_gguf(tmp_path / "again.gguf", tokenizer).save_pretrained(tmp_path / "original")
    tokenizer.save_pretrained(tmp_path / "original")
    report = merge_adapter(adapter, tmp_path / "merged", base_model=tmp_path / "original")
    assert 0 < report.base_difference < 1
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert f"differ by at most {report.base_difference:.2g} on the base that this merge was made with" in card
    near = FlippedMatcher.from_pretrained(adapter, base_model=tmp_path / "original").predict(PAIRS)
    np.testing.assert_allclose(near, FlippedMatcher.from_pretrained(adapter).predict(PAIRS), atol=0.1)


def test_the_card_says_that_the_base_was_rounded(adapter: Path) -> None:
    card = write_card(adapter, overwrite=True).read_text(encoding="utf-8")
    assert "tiny.Q8_0.gguf" in card and "dequantised" in card and GgufBase.from_pretrained(adapter).sha256 in card


# ---- On the Hub ----


def test_an_adapter_on_a_local_file_is_not_pushed_its_merge_is(
    adapter: Path, hub: LoopbackHub, online: HfApi, tmp_path: Path
) -> None:
    with pytest.raises(PublishError, match="merge it and push the merged folder"):
        push_folder(adapter, "tester/tiny")
    report = publish(adapter, "tester/tiny", merged=True)
    assert report.adapter_url is None and report.merged_url is not None
    assert not online.repo_exists("tester/tiny")
    found = FlippedMatcher.from_pretrained("tester/tiny-merged").predict(PAIRS)
    np.testing.assert_allclose(found, FlippedMatcher.from_pretrained(adapter).predict(PAIRS), atol=1e-5)


def test_a_file_on_the_hub(
    file: Path, hub: LoopbackHub, online: HfApi, build: Any, held_out: datasets.Dataset, tmp_path: Path
) -> None:
    online.create_repo("tester/base")
    online.upload_file(path_or_fileobj=file, path_in_repo=f"quantised/{file.name}", repo_id="tester/base")
    name = f"tester/base:quantised/{file.name}"
    trainer = build(model=name, processing_class=None, max_steps=0)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    recorded = GgufBase.from_pretrained(tmp_path / "adapter")
    assert recorded.repo_id == "tester/base" and recorded.file == f"quantised/{file.name}"
    assert recorded.revision == online.model_info("tester/base").sha
    push_folder(tmp_path / "adapter", "tester/adapter")
    matcher = FlippedMatcher.from_pretrained("tester/adapter")
    here = FlippedMatcher.from_pretrained(tmp_path / "adapter")
    np.testing.assert_allclose(matcher.predict(PAIRS), here.predict(PAIRS), atol=1e-6)


def test_a_comparison_on_a_file_of_the_hub_is_pushed_with_its_results(
    file: Path,
    hub: LoopbackHub,
    online: HfApi,
    teacher_dir: Path,
    pairs: datasets.Dataset,
    held_out: datasets.Dataset,
    tmp_path: Path,
) -> None:
    online.create_repo("tester/base2")
    online.upload_file(path_or_fileobj=file, path_in_repo=file.name, repo_id="tester/base2")
    files = {}
    for split, part in (("train", pairs), ("validation", held_out), ("test", held_out)):
        files[f"{split}_file"] = str(tmp_path / f"{split}.jsonl")
        part.to_json(files[f"{split}_file"])
    data = DataArguments(**files, teacher=str(teacher_dir))
    config = settings(tmp_path / "out", max_steps=0, push_to_hub=True, hub_model_id="tester/compared", score="answer")
    run_comparison(StudentArguments(student=f"tester/base2:{file.name}", lora_r=4), data, config)
    card = online.hf_hub_download("tester/compared", "README.md")
    text = Path(card).read_text(encoding="utf-8")
    assert "base_model: tester/base2\n" in text and f'gguf_file="{file.name}"' in text
    local = StudentArguments(student=str(file), lora_r=4)
    with pytest.raises(PublishError, match="merge it and push"):  # before anything is trained
        run_comparison(local, data, settings(tmp_path / "other", push_to_hub=True, hub_model_id="tester/other"))
    assert not (tmp_path / "other").exists()


# ---- Bad input ----


def test_a_header_is_read_once_and_a_changed_file_anew(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.Q8_0.gguf"
    write_gguf(path, tokenizer)
    load_student(path)
    read: list[str] = []
    reader = gguf.GGUFReader

    def counting(name: Any, *args: Any) -> Any:
        read.append(str(name))
        return reader(name, *args)

    monkeypatch.setattr(gguf, "GGUFReader", counting)
    config = load_gguf_config(path)
    config.hidden_size = 3  # a caller's change stays with the caller
    assert load_gguf_config(path).hidden_size != 3 and read == []
    first = load_student(path)
    assert read == [str(path)]  # its weights
    write_gguf(path, tokenizer, layers=3)
    other = load_student(path)
    assert other.config.num_hidden_layers == 3 != first.config.num_hidden_layers
    assert load_gguf_config(path).num_hidden_layers == 3


def test_broken_files_are_refused_by_name(file: Path, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(ValueError, match="text.gguf is no GGUF file"):
        load_student(tmp_path / "text.gguf")
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="cut.gguf is a .*truncated GGUF file.*download it again|Download it again"):
        load_student(tmp_path / "cut.gguf")
    (tmp_path / "head.gguf").write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match="head.gguf is a broken or truncated GGUF file"):
        load_tokenizer(tmp_path / "head.gguf")
    with pytest.raises(ValueError, match="is no existing file.*FOLDER/FILE.gguf"):
        load_student(tmp_path / "absent.gguf")


def test_a_part_of_a_file_is_refused_and_scaled_positions_are_warned_of(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def scaled(writer: Any) -> None:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)

    for name, more in {
        "plain": lambda _: None,
        "linear": scaled,
        "freqs": lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32)),
    }.items():
        write_gguf(tmp_path / f"{name}.gguf", tokenizer, more)
        caplog.clear()
        load_tokenizer(tmp_path / f"{name}.gguf")
        assert ("scales its positions" in caplog.text) is (name != "plain"), name
    write_gguf(tmp_path / "split.gguf", tokenizer, lambda writer: writer.add_uint16("split.count", 3))
    with pytest.raises(ValueError, match=r"split.gguf is a part of several: .*llama-gguf-split --merge"):
        load_tokenizer(tmp_path / "split.gguf")


def test_four_bits_of_a_rounded_model_are_refused(file: Path) -> None:
    with pytest.raises(ValueError, match="load_in_4bit"):
        load_student(file, load_in_4bit=True)


def test_without_the_package_it_says_what_to_install(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"flipped_kd\[gguf\]"):
        gguf_path(file)


def test_a_broken_record_is_named(adapter: Path) -> None:
    (adapter / GGUF_FILE).write_text('{"format_version": 9}')
    with pytest.raises(ValueError, match="format_version 9"):
        GgufBase.from_pretrained(adapter)
    (adapter / GGUF_FILE).write_text('{"format_version": 1, "size": 3}')
    with pytest.raises(ValueError, match="no record of a GGUF base"):
        GgufBase.from_pretrained(adapter)
    (adapter / GGUF_FILE).unlink()
    assert GgufBase.from_pretrained(adapter) is None


@pytest.mark.shared
@pytest.mark.slow
def test_a_real_language_model(shared: Path) -> None:
    """SmolLM2 as a package carries it."""
    (real,) = (shared / "models" / "smollm2-135m-instruct-gguf").glob("*.gguf")
    model, tokenizer = load_student(real, dtype="float32"), load_tokenizer(real)
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(prompt, return_tensors="pt")
    answer = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, ids.input_ids.shape[1] :])
