"""Matchers and indexes copied and pickled in every way, here and in other processes: the same scores to the bit."""

from __future__ import annotations

import concurrent.futures
import copy
import importlib.util
import io
import multiprocessing
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import dill
import joblib
import numpy as np
import pytest
import torch

from flipped_kd import FlippedMatcher, SearchIndex
from flipped_kd.publishing.merge import merge_adapter
from flipped_kd.students.cpu_bfloat16 import fast_bfloat16
from flipped_kd.students.lora_encoder import LoraEncoder
from tests.adapters import MIXED_PAIRS, make_adapter, make_base
from tests.conftest import make_pairs
from tests.gguf_files import write_gguf
from tests.invariants.training import new_trainer, settings

DOCUMENTS = [text for pair in MIXED_PAIRS for text in pair]


def through_torch(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_joblib(value: Any) -> Any:
    file = io.BytesIO()
    joblib.dump(value, file)
    file.seek(0)
    return joblib.load(file)


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "dill": lambda value: dill.loads(dill.dumps(value)),
    "torch": through_torch,
    "joblib": through_joblib,
}
if importlib.util.find_spec("cloudpickle"):  # no library that the tests ask for brings it along
    import cloudpickle

    WAYS["cloudpickle"] = lambda value: cloudpickle.loads(cloudpickle.dumps(value))


@pytest.fixture(scope="module", params=["adapter", "merged", "gguf"])
def folder(
    request: pytest.FixtureRequest, tokenizer: Any, teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Each kind of trained model."""
    place = tmp_path_factory.mktemp(request.param)
    if request.param == "gguf":
        write_gguf(place / "tiny.gguf", tokenizer)
        pairs, args = make_pairs(16), settings(place / "run", max_steps=1, learning_rate=1e-2)
        trainer = new_trainer(args, str(place / "tiny.gguf"), str(teacher_dir), pairs, pairs, None)
        trainer.train()
        trainer.save_model(str(place / "adapter"))
        return place / "adapter"
    adapter = make_adapter(
        place / "adapter", make_base(place / "base", "qwen2", tokenizer, tied=True), tokenizer, max_length=96
    )
    if request.param == "adapter":
        return adapter
    return merge_adapter(adapter, place / "merged", sentence_transformers=False).folder


@pytest.fixture
def matcher(folder: Path) -> FlippedMatcher:
    return FlippedMatcher.from_pretrained(folder, device="cpu")


def in_time(function: Callable[[], Any], seconds: float = 100) -> Any:
    """What a function gives; TimeoutError, not a test that never ends, where it waits for a lock that nobody opens."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(timeout=seconds)


def results(matcher: FlippedMatcher, index: SearchIndex | None = None) -> list[Any]:
    """All that a matcher gives, as plain values."""
    found = [part.tolist() for part in matcher.scores(MIXED_PAIRS)]
    found += [matcher.encode(DOCUMENTS).tolist(), matcher.rank("cash", DOCUMENTS)]
    return [*found, matcher.search("my card", index or DOCUMENTS, rerank=12)]


def score_in_a_pool(matcher: FlippedMatcher) -> list[Any]:
    torch.set_num_threads(1)
    return results(matcher)


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_scores_alike_by_itself(way: str, matcher: FlippedMatcher) -> None:
    """Fresh, and after it has tried its model and filled its caches; the original's later changes do not reach it."""
    fresh = WAYS[way](matcher)
    expected = results(matcher)
    assert in_time(lambda: results(fresh)) == expected
    used, again = WAYS[way](matcher), WAYS[way](fresh)
    with torch.no_grad():
        for weight in matcher.model.parameters():
            weight.mul_(1.5)
    assert results(matcher) != expected
    assert results(used) == expected and results(again) == expected
    assert used.source == matcher.source and used.match_score.kinds == matcher.match_score.kinds  # type: ignore[union-attr]


@pytest.mark.parametrize("way", WAYS)
def test_an_index_alone_and_beside_its_matcher(way: str, matcher: FlippedMatcher) -> None:
    """Alone it is as small as its texts and vectors, and is not the matcher's that made it."""
    index = matcher.index(DOCUMENTS)
    expected = results(matcher, index)
    alone = WAYS[way](index)
    assert alone.texts == index.texts and torch.equal(alone.embeddings, index.embeddings)
    assert not alone.known_to and len(pickle.dumps(index)) < 2 * index.embeddings.nbytes + 5000
    assert results(matcher, alone) == expected
    other, its = WAYS[way]((matcher, index))
    assert results(other, its) == expected


def test_a_shallow_copy_is_the_same_model(matcher: FlippedMatcher) -> None:
    """Also for threads: with locks of their own they would read one model at the same time."""
    twin = copy.copy(matcher)
    twin.match_score = None
    assert twin.model is matcher.model and matcher.match_score is not None
    expected = results(matcher)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(results, [matcher, copy.copy(matcher)] * 4)) == [expected] * 8


def test_copies_made_while_others_score(matcher: FlippedMatcher) -> None:
    """What a reading leaves out of the model (all rows of the output layer but two) is not left out of a copy."""
    expected = results(matcher)
    stop, seen = threading.Event(), []

    def score() -> None:
        while not stop.is_set():
            seen.append(results(matcher) == expected)

    threads = [threading.Thread(target=score) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        copies = [WAYS[way](matcher) for way in ("pickle", "deepcopy") * 5]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert all(seen) and seen
    for each in copies:
        assert results(each) == expected
        head = each.model.get_output_embeddings()
        assert "forward" not in vars(head) and head(torch.ones(1, 32)).shape[-1] == head.out_features


def test_threads_of_a_copy_agree(matcher: FlippedMatcher) -> None:
    expected = results(matcher)
    twin = pickle.loads(pickle.dumps(matcher))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(found == expected for found in pool.map(results, [twin] * 8))


def test_a_pool_of_forked_processes(matcher: FlippedMatcher) -> None:
    expected = results(matcher)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        assert pool.submit(score_in_a_pool, matcher).result(timeout=200) == expected


@pytest.mark.parametrize("folder", ["adapter"], indirect=True)  # one kind: each process imports all anew
def test_a_pool_of_spawned_processes(matcher: FlippedMatcher) -> None:
    expected = results(matcher)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(score_in_a_pool, matcher).result(timeout=200) == expected


@pytest.mark.parametrize("folder", ["adapter"], indirect=True)
def test_a_model_alone_in_a_process_that_has_imported_nothing(matcher: FlippedMatcher, tmp_path: Path) -> None:
    """Scoring gives it an attention of ours, which must be known where the model is loaded."""
    results(matcher)
    model: Any = matcher.model
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps(model))
    code = "import pickle, sys, torch; model = pickle.load(open(sys.argv[1], 'rb')); torch.set_num_threads(1); "
    code += "print(model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().item())"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert float(done.stdout) == pytest.approx(model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().item())


@pytest.mark.parametrize("folder", ["adapter"], indirect=True)
def test_joblib_workers(matcher: FlippedMatcher) -> None:
    expected = results(matcher)
    found = joblib.Parallel(2, timeout=200)(joblib.delayed(score_in_a_pool)(matcher) for _ in range(2))
    assert found == [expected] * 2


def test_datasets_map_in_processes(matcher: FlippedMatcher) -> None:
    """Whose function's fingerprint, by dill, is the same each time, so that what was computed is found again."""
    expected = matcher.predict(MIXED_PAIRS).tolist()
    texts_a, texts_b = zip(*MIXED_PAIRS, strict=True)
    table = datasets.Dataset.from_dict({"text_a": texts_a, "text_b": texts_b})

    def score(rows: dict[str, list[str]]) -> dict[str, Any]:
        torch.set_num_threads(1)
        return {"score": matcher.predict(list(zip(rows["text_a"], rows["text_b"], strict=True)))}

    scored = in_time(lambda: table.map(score, batched=True, num_proc=2))
    np.testing.assert_allclose(scored["score"][:], expected, rtol=0, atol=1e-6)  # other batches
    assert table.map(score, batched=True, num_proc=2)._fingerprint == scored._fingerprint


@pytest.mark.parametrize(
    "settings_of",
    [{}, {"precision": "bf16"}, {"activation_checkpointing": True}],
    ids=["float32", "mixed precision", "activation checkpointing"],
)
def test_a_trainers_model_is_copied_whole(
    settings_of: dict[str, Any], student_dir: Path, teacher_dir: Path, pairs: Any, tmp_path: Path
) -> None:
    """With its encoder's hooks, which record into an encoder of the copy's own, and what training has put round it."""
    args = settings(tmp_path, max_steps=1, **settings_of)
    trainer = new_trainer(args, str(student_dir), str(teacher_dir), pairs, None, None)
    trainer.train()
    matcher = FlippedMatcher(trainer.model, trainer.processing_class, trainer.prompt, trainer.encoder)
    ids, spans = torch.tensor([[5, 6, 7, 8]]), torch.ones(1, 4)

    def read(model: Any, encoder: LoraEncoder) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad(), encoder.capture() as captured:
            logits = model.eval()(input_ids=ids).logits
            return logits, encoder.pool(captured, spans)

    expected, scores = read(trainer.model, trainer.encoder), results(matcher)
    for name, way in WAYS.items():
        model, encoder = way((trainer.model, trainer.encoder))
        assert model is not trainer.model
        for found, wanted in zip(read(model, encoder), expected, strict=True):
            assert torch.equal(found, wanted), name
        assert results(way(matcher)) == scores, name
        # Alone, the model is whole as well, and an encoder without its model says so.
        alone = way(trainer.model)
        with torch.no_grad():
            assert torch.equal(alone.eval()(input_ids=ids).logits, expected[0]), name
        loss = alone.train()(input_ids=ids, labels=ids).loss
        loss.backward()
        assert any(weight.grad is not None for weight in alone.parameters()), name
        for encoder in (way(trainer.encoder), copy.copy(trainer.encoder)):
            with pytest.raises(RuntimeError, match="not attached"), encoder.capture():
                pass


def test_mixed_precision_can_be_taken_off_a_copy(
    student_dir: Path, teacher_dir: Path, pairs: Any, tmp_path: Path
) -> None:
    """As accelerate takes it off the trainer's own model."""
    args = settings(tmp_path, max_steps=1, precision="bf16")
    trainer = new_trainer(args, str(student_dir), str(teacher_dir), pairs, None, None)
    trainer.train()
    ids = torch.tensor([[5, 6, 7, 8]])
    twin = pickle.loads(pickle.dumps(trainer.model)).eval()
    with torch.no_grad():
        mixed = twin(input_ids=ids).logits
        plain = trainer.accelerator.unwrap_model(twin, keep_fp32_wrapper=False)(input_ids=ids).logits
        with torch.autocast("cpu", torch.bfloat16), fast_bfloat16(torch.bfloat16, torch.device("cpu")):
            again = twin(input_ids=ids).logits
    assert torch.equal(again.float(), mixed) and not torch.equal(plain, mixed)
