"""The merged model is the adapter: for every family, by every reader; and nothing half-written is ever left."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from flipped_kd.inference.matcher import FlippedMatcher
from flipped_kd.prompts.pair_prompt import PairPrompt
from flipped_kd.publishing import merge, merge_weights
from flipped_kd.publishing.card import write_card
from flipped_kd.publishing.crossencoder_layout import check_layout, write_layout
from flipped_kd.publishing.errors import PublishError
from flipped_kd.publishing.files import CROSS_ENCODER_FILES, uploadable
from flipped_kd.publishing.merge import MergeReport, merge_adapter
from flipped_kd.publishing.merge_probe import PROBE_TOKENS, probe_pairs, round_otherwise
from tests.adapters import LINEAR, MIXED_PAIRS, make_adapter, make_base, tied_adapter

MERGED_FILES = {
    "README.md",
    "_adapter/adapter_config.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "lora_encoder.json",
    "lora_encoder.safetensors",
    "match_score.json",
    "merge_report.json",
    "model.safetensors",
    "pair_prompt.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
REPORT = Path(__file__).parents[2] / "model_cards" / "fin_mini" / "report.json"
TEXTS = sorted({text for pair in MIXED_PAIRS for text in pair})


@pytest.fixture
def adapter(tmp_path: Path, tokenizer: Any) -> Path:
    """An adapter on every linear layer of a tied Qwen2."""
    return tied_adapter(tmp_path, tokenizer)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def close(found: Any, expected: Any) -> None:
    """To 1e-5, of the largest value where that is above 1."""
    scale = max(1.0, float(np.abs(np.asarray(expected)).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


def assert_same(adapter: Path, merged: Path) -> None:
    """Scores and vectors, independently of what the merge has compared."""
    one, other = (FlippedMatcher.from_pretrained(folder, device="cpu") for folder in (adapter, merged))
    before, after = one.scores(MIXED_PAIRS), other.scores(MIXED_PAIRS)
    assert np.std(before[0]) > 0.05 and np.std(before[1]) > 0.01
    close(after[0], before[0])
    close(after[1], before[1])
    close(other.encode(TEXTS), one.encode(TEXTS))


# ---- The same scores ----


def test_every_reader_gets_the_same_scores(adapter: Path, tmp_path: Path) -> None:
    report = merge_adapter(adapter, tmp_path / "merged")
    assert files(tmp_path / "merged") == MERGED_FILES | set(CROSS_ENCODER_FILES)
    assert report.sentence_transformers and report.reason is None and not report.untied
    assert report.cross_encoder_difference is not None and report.cross_encoder_difference < 1e-4
    assert_same(adapter, tmp_path / "merged")

    matcher = FlippedMatcher.from_pretrained(adapter, device="cpu")
    answer = matcher.scores(MIXED_PAIRS)[0]
    cross_encoder = CrossEncoder(str(tmp_path / "merged"), device="cpu")
    close(cross_encoder.predict(MIXED_PAIRS, activation_fn=nn.Identity(), show_progress_bar=False), answer)
    close(cross_encoder.predict(MIXED_PAIRS, show_progress_bar=False), 1 / (1 + np.exp(-answer)))
    ranked = cross_encoder.rank(MIXED_PAIRS[0][0], TEXTS, show_progress_bar=False)
    odds = matcher.scores([(MIXED_PAIRS[0][0], text) for text in TEXTS])[0]
    assert [row["corpus_id"] for row in ranked] == np.argsort(-odds).tolist()


def test_plain_transformers_reads_it(adapter: Path, tmp_path: Path) -> None:
    folder = merge_adapter(adapter, tmp_path / "merged").folder
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(adapter)).eval()
    merged = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert merged.dtype == torch.float32 and merged.config.tie_word_embeddings
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert not inputs["attention_mask"][:, 0].all() and inputs["attention_mask"][:, -1].all()  # padded on the left
    with torch.no_grad():
        expected, found = adapted(**inputs).logits, merged(**inputs).logits
    real = inputs["attention_mask"].bool()
    close(found[real], expected[real])

    generate = pipeline("text-generation", model=str(folder), device="cpu")
    text_a, text_b = MIXED_PAIRS[1]
    prompt = PairPrompt.from_pretrained(folder, tokenizer)
    with torch.no_grad():
        ids = torch.tensor([prompt.encode_pairs([text_a], [text_b])[0].input_ids])
        token = int(adapted(input_ids=ids).logits[0, -1].argmax())
    greedy: dict[str, Any] = {"max_new_tokens": 1, "do_sample": False, "return_full_text": False}
    (plain,) = generate(prompt.render(text_a, text_b), **greedy)
    pair = [{"role": "query", "content": text_a}, {"role": "document", "content": text_b}]
    (chat,) = generate(pair, **greedy)
    assert plain["generated_text"] == chat["generated_text"] == tokenizer.decode([token], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("kind", "untied", "options"),
    [
        ("qwen2", True, {"target_modules": [*LINEAR, "embed_tokens"]}),
        ("qwen2", True, {"target_modules": [*LINEAR, "embed_tokens", "lm_head"]}),
        ("qwen2", False, {"target_modules": [*LINEAR, "embed_tokens"], "ensure_weight_tying": True}),
        ("qwen2", True, {"modules_to_save": ["lm_head"]}),
        ("qwen2", True, {"modules_to_save": ["embed_tokens"]}),
        ("qwen2", False, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
        ("gemma3", True, {"target_modules": [*LINEAR, "embed_tokens"]}),
        ("gpt2", True, {"target_modules": ["c_attn", "c_proj", "wte"]}),
        ("bert", True, {"target_modules": ["query", "value", "word_embeddings"]}),
    ],
)
def test_tied_embeddings(tmp_path: Path, tokenizer: Any, kind: str, untied: bool, options: dict[str, Any]) -> None:
    """An adapter of one of two tied matrices leaves the other as it was."""
    base = make_base(tmp_path / "base", kind, tokenizer, tied=True)
    adapter = make_adapter(tmp_path / "adapter", base, tokenizer, **options)
    report = merge_adapter(adapter, tmp_path / "merged")
    assert report.untied == untied
    assert_same(adapter, tmp_path / "merged")
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (base, report.folder))
    embedding: Any
    head: Any
    embedding, head = after.get_input_embeddings().weight, after.get_output_embeddings().weight
    assert after.config.tie_word_embeddings != untied and torch.equal(embedding, head) != untied
    if untied and "modules_to_save" not in options and "lm_head" not in options["target_modules"]:
        assert torch.equal(head, before.get_output_embeddings().weight)
    assert report.sentence_transformers == (kind not in ("gpt2", "bert"))


def test_a_merge_into_the_shared_matrix_would_be_noticed(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT's own merge, without untying: the probe refuses it and nothing is left."""
    adapter = tied_adapter(tmp_path, tokenizer, target_modules=[*LINEAR, "embed_tokens"])
    monkeypatch.setattr(merge_weights, "_untie", lambda base: False)
    with pytest.raises(PublishError, match="answer differs.*nothing was written"):
        merge_adapter(adapter, tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


def test_models_that_rounding_moves_far(tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Of steep weights even the last bit is seen in the scores: they are merged, and the report says how far."""
    base = make_base(tmp_path / "base", "qwen2", tokenizer, tied=True)
    weights = load_file(base / "model.safetensors")
    save_file({n: 2 * w for n, w in weights.items()}, base / "model.safetensors", metadata={"format": "pt"})
    reports = []
    for seed in range(4):
        adapter = make_adapter(tmp_path / f"adapter-{seed}", base, tokenizer, seed=seed)
        reports.append(merge_adapter(adapter, tmp_path / f"merged-{seed}"))
    assert max(report.answer_difference for report in reports) > 5e-5
    assert all(report.answer_difference <= report.answer_tolerance < 0.03 for report in reports)


def test_every_weight_is_rounded_otherwise_by_one_unit() -> None:
    model = nn.Linear(50, 40)
    before = copy.deepcopy(model)
    round_otherwise(model)
    for old, new in zip(before.parameters(), model.parameters(), strict=True):
        lower, upper = (torch.nextafter(old, torch.full_like(old, end)) for end in (-torch.inf, torch.inf))
        assert torch.all((new == lower) | (new == upper)) and (new == upper).float().mean().sub(0.5).abs() < 0.3


@pytest.mark.parametrize("options", [{"use_dora": True}, {"use_rslora": True, "rank_pattern": {"q_proj": 2}}])
def test_variants_of_lora(tmp_path: Path, tokenizer: Any, options: dict[str, Any]) -> None:
    base = make_base(tmp_path / "base", "qwen2", tokenizer, tied=False)
    adapter = make_adapter(tmp_path / "adapter", base, tokenizer, encoder_layers="last:1", score=False, **options)
    report = merge_adapter(adapter, tmp_path / "merged")
    assert_same(adapter, report.folder)
    assert files(report.folder) == MERGED_FILES - {"match_score.json"} | set(CROSS_ENCODER_FILES)


def test_a_base_of_half_precision_is_merged_in_full(tmp_path: Path, tokenizer: Any) -> None:
    base = make_base(tmp_path / "base", "qwen2", tokenizer, tied=True, dtype=torch.bfloat16)
    adapter = make_adapter(tmp_path / "adapter", base, tokenizer)
    assert AutoModelForCausalLM.from_pretrained(base).dtype == torch.bfloat16
    report = merge_adapter(adapter, tmp_path / "merged")
    assert AutoModelForCausalLM.from_pretrained(report.folder).dtype == torch.float32
    assert report.answer_difference < 1e-4
    assert_same(adapter, report.folder)


# ---- The layout of sentence-transformers ----


def test_decoders_that_count_from_the_pad_get_no_layout(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    base = make_base(tmp_path / "base", "gpt2", tokenizer, tied=True)
    adapter = make_adapter(tmp_path / "adapter", base, tokenizer, target_modules=["c_attn", "c_proj", "c_fc"])
    report = merge_adapter(adapter, tmp_path / "merged")
    assert files(report.folder) == MERGED_FILES
    assert not report.sentence_transformers and report.reason is not None
    assert "pads on the left" in report.reason and "GPT2LMHeadModel" in report.reason and report.reason in caplog.text
    assert_same(adapter, report.folder)
    # With the layout CrossEncoder would load it, and be right alone and wrong in a batch.
    matcher = FlippedMatcher.from_pretrained(report.folder, device="cpu")
    write_layout(report.folder, matcher.prompt)
    cross_encoder = CrossEncoder(str(report.folder), device="cpu")
    options: dict[str, Any] = {"activation_fn": nn.Identity(), "show_progress_bar": False}
    answer = matcher.scores(MIXED_PAIRS)[0]
    close(cross_encoder.predict(MIXED_PAIRS, batch_size=1, **options), answer)
    assert np.abs(cross_encoder.predict(MIXED_PAIRS, **options) - answer).max() > 0.05


def test_the_layout_can_be_left_out(adapter: Path, tmp_path: Path) -> None:
    report = merge_adapter(adapter, tmp_path / "merged", sentence_transformers=False)
    assert files(report.folder) == MERGED_FILES
    assert not report.sentence_transformers and report.cross_encoder_difference is None


def test_a_layout_with_other_answers_is_refused(adapter: Path, tmp_path: Path) -> None:
    """Even pair by pair it is another score: that is no matter of padding."""
    folder = merge_adapter(adapter, tmp_path / "merged").folder
    answer = FlippedMatcher.from_pretrained(folder, device="cpu").scores(MIXED_PAIRS)[0]
    path = folder / "1_LogitScore" / "config.json"
    score = json.loads(path.read_text())
    score["true_token_id"], score["false_token_id"] = score["false_token_id"], score["true_token_id"]
    path.write_text(json.dumps(score))
    with pytest.raises(PublishError, match="single pairs.*sentence_transformers=False"):
        check_layout(folder, MIXED_PAIRS, answer, 1e-5)
    path.write_text("{}")
    with pytest.raises(PublishError, match="cannot use.*sentence_transformers=False"):
        check_layout(folder, MIXED_PAIRS, answer, 1e-5)


def test_tokenizers_that_add_bos_by_themselves(tmp_path: Path, tokenizer: Any) -> None:
    """As Llama's: a template must not lead to two of them."""
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"bos_token": "<|begin|>"})
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", own.bos_token_id)]
    )
    assert own("yes").input_ids[0] == own.bos_token_id
    base = make_base(tmp_path / "base", "qwen2", own, tied=True)
    adapter = make_adapter(tmp_path / "adapter", base, own)
    report = merge_adapter(adapter, tmp_path / "merged")
    reloaded = AutoTokenizer.from_pretrained(report.folder)
    pair = [{"role": "query", "content": "cash"}, {"role": "document", "content": "refund"}]
    prompt = PairPrompt.from_pretrained(report.folder, reloaded)
    rendered: Any = reloaded.apply_chat_template(pair, return_dict=True)
    ids = rendered["input_ids"]
    assert prompt.prefix_ids[0] == own.bos_token_id
    assert ids == prompt.encode_pairs(["cash"], ["refund"])[0].input_ids and ids.count(own.bos_token_id) == 1
    assert report.sentence_transformers
    assert_same(adapter, report.folder)


@pytest.mark.parametrize(
    "template",
    [
        "{% for message in messages %}\n<|im_start|>{{ message.role }}\n"
        "{{ message.content }}<|im_end|>\n{% endfor %}\n",
        "\n  {%- for message in messages %}{{ message['content'] }}  \n\n{% endfor %}\n   ",
        "{% macro say(x) %}[{{ x }}]{% endmacro %}{% set ns = namespace(n=0) %}\n"
        "{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ say(m.content) }}{{ ns.n }}{% endfor %}",
    ],
)
def test_other_chats_go_through_the_template_of_the_base(tmp_path: Path, tokenizer: Any, template: str) -> None:
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    base = make_base(tmp_path / "base", "qwen2", own, tied=True)
    adapter = make_adapter(tmp_path / "adapter", base, own)
    folder = merge_adapter(adapter, tmp_path / "merged").folder
    merged = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    expected = AutoTokenizer.from_pretrained(base).apply_chat_template(chat, tokenize=False)
    assert merged.apply_chat_template(chat, tokenize=False) == expected
    text_a, text_b = MIXED_PAIRS[2]
    pair = [{"role": "query", "content": text_a}, {"role": "document", "content": text_b}]
    rendered = merged.apply_chat_template(pair, tokenize=False)
    assert rendered == PairPrompt.from_pretrained(folder, merged).render(text_a, text_b)


# ---- Refusals, and what is left ----


def test_a_quantised_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError, match=r"quantised \(gptq\).*base_model="):
        merge_adapter(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_base_that_has_moved(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="base_model="):
        merge_adapter(adapter, tmp_path / "merged")
    report = merge_adapter(adapter, tmp_path / "merged", base_model=tmp_path / "elsewhere")
    assert report.base_model is None  # a local folder's path is kept nowhere
    for path in report.folder.rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path


def test_what_is_no_adapter_is_refused(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        merge_adapter(tmp_path / "nowhere", tmp_path / "merged")
    with pytest.raises(ValueError, match="pair_prompt.json"):
        merge_adapter(tmp_path / "base", tmp_path / "merged")
    folder = merge_adapter(adapter, tmp_path / "merged").folder
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_adapter(folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_weights_that_are_no_numbers_are_refused(adapter: Path, tmp_path: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in weights if "q_proj.lora_B" in name)
    weights[name][0, 0] = float("nan")
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FloatingPointError, match="no finite numbers"):
        merge_adapter(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".merged*"))


def test_a_folder_in_use_is_not_touched(adapter: Path, tmp_path: Path) -> None:
    target = tmp_path / "merged"
    target.mkdir()
    (target / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="not empty"):
            merge_adapter(adapter, target, overwrite=overwrite)
    assert (target / "thesis.txt").read_text() == "mine"
    (target / "thesis.txt").unlink()
    first = merge_adapter(adapter, target)
    with pytest.raises(ValueError, match="not empty"):
        merge_adapter(adapter, target)
    make_adapter(adapter, tmp_path / "base", AutoTokenizer.from_pretrained(adapter), seed=2)
    second = merge_adapter(adapter, target, overwrite=True)
    assert first.fingerprint != second.fingerprint
    assert MergeReport.load(target) == second
    assert_same(adapter, target)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter", "merged"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    """After the weights have been written, before the folder has its name."""

    def interrupted(folder: Path, prompt: PairPrompt) -> None:
        assert (folder / "model.safetensors").is_file() and folder.parent == tmp_path
        raise stop

    monkeypatch.setattr(merge, "write_layout", interrupted)
    with pytest.raises(stop):
        merge_adapter(adapter, tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


def test_reports_of_other_releases_are_refused(adapter: Path, tmp_path: Path) -> None:
    folder = merge_adapter(adapter, tmp_path / "merged").folder
    path = folder / "merge_report.json"
    newer = json.loads(path.read_text()) | {"format_version": 99}
    path.write_text(json.dumps(newer))
    with pytest.raises(ValueError, match="format_version 99.*upgrade"):
        MergeReport.load(folder)
    path.write_text("[]")
    with pytest.raises(ValueError, match="merge again"):
        MergeReport.load(folder)


def test_the_probe_has_several_lengths_and_cuts_none(tokenizer: Any) -> None:
    """Even where there is room for hardly anything."""
    room = PairPrompt.from_preset(tokenizer, max_length=256)
    fixed = room.max_length - room.room
    for max_length in (fixed + 8, 64, 256, 4096):
        prompt = PairPrompt.from_preset(tokenizer, max_length=max_length)
        pairs = probe_pairs(prompt)
        tokens = prompt.encode_pairs([a for a, _ in pairs], [b for _, b in pairs])
        assert not any(pair.truncated for pair in tokens)
        lengths = {len(pair.input_ids) for pair in tokens}
        assert len(lengths) > 1 and max(lengths) <= min(max_length, max(PROBE_TOKENS, fixed + 16))


# ---- What stands beside the weights ----


def test_a_card_written_later_tells_what_the_first_one_did(adapter: Path, tmp_path: Path) -> None:
    """As by `flipped-kd push` and `card`: it lost the results, the losses and the adapter's settings."""
    shutil.copy(REPORT, adapter)
    merged = merge_adapter(adapter, tmp_path / "merged").folder
    card = (merged / "README.md").read_text(encoding="utf-8")
    assert "## Results" in card and "model-index" in card
    write_card(merged, merged=True)
    assert (merged / "README.md").read_text(encoding="utf-8") == card
    assert not any(path.parts[0] == "_adapter" for path in uploadable(merged))


def test_a_new_merge_keeps_documents_of_the_users(adapter: Path, tmp_path: Path) -> None:
    merged = merge_adapter(adapter, tmp_path / "merged").folder
    (merged / "LICENSE").write_text("ours")
    card = (merged / "README.md").read_text(encoding="utf-8")
    (merged / "README.md").write_text(card.replace("---\n", "---\nlicense: apache-2.0\n", 1), encoding="utf-8")
    merge_adapter(adapter, merged, overwrite=True)
    assert "license: apache-2.0\n" in (merged / "README.md").read_text(encoding="utf-8")  # added to our card
    (merged / "README.md").write_text("# A card of our own\n")
    merge_adapter(adapter, merged, overwrite=True)
    assert (merged / "LICENSE").read_text() == "ours"
    assert (merged / "README.md").read_text() == "# A card of our own\n"
    assert_same(adapter, merged)


def test_a_base_with_idle_settings_of_sampling_is_merged(
    adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers reads such a generation_config.json and saves none."""
    idle = {"temperature": 0.6, "top_p": 0.9, "do_sample": False, "max_length": 77}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(idle))
    merged = merge_adapter(adapter, tmp_path / "merged").folder
    assert "generation_config.json is mended" in caplog.text
    saved = json.loads((merged / "generation_config.json").read_text())
    assert saved["max_length"] == 77 and not saved.get("do_sample") and saved.get("temperature", 1.0) in (None, 1.0)
