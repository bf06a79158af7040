"""Pair sets from the owners' files: built on small files of the same form."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from flipped_kd.data.loading import load_pairs
from recipes.data import build_pairs

INTENTS = {
    "card": [
        "where is my card",
        "my card has not come",
        "card still missing",
        "the card did not arrive",
        "no card yet",
    ],
    "fee": ["why this fee", "a fee was charged", "the fee is wrong", "explain the fee", "I do not owe a fee"],
    "pin": ["change my pin", "a new pin please", "pin forgotten", "how to set the pin", "the pin is blocked"],
}


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small files of the owners' form, with their own sums and addresses."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for split, mark in (("train", ""), ("test", " now")):
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "category"])
            writer.writerows([text + mark, intent] for intent, texts in INTENTS.items() for text in texts)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        documents = [{"_id": f"d{number}", "title": f"title {number} of tea"} for number in range(12)]
        archive.writestr("nfcorpus/corpus.jsonl", "\n".join(map(json.dumps, documents)))
        queries = [{"_id": "q0", "text": "tea and health"}, {"_id": "q1", "text": "title 3"}]
        archive.writestr("nfcorpus/queries.jsonl", "\n".join(map(json.dumps, queries)))
        for name in ("train", "dev", "test"):
            lines = ["query-id\tcorpus-id\tscore", "q0\td0\t2", "q0\td1\t1", "q0\td2\t2", "q1\td3\t2"]
            archive.writestr(f"nfcorpus/qrels/{name}.tsv", "\n".join(lines))
    (folder / "nfcorpus.zip").write_bytes(buffer.getvalue())
    for name in build_pairs.SOURCES:
        described = (folder / name).as_uri(), hashlib.sha256((folder / name).read_bytes()).hexdigest()
        monkeypatch.setitem(build_pairs.SOURCES, name, described)
    return folder


def intent_of(text: str) -> str:
    return next(name for name, texts in INTENTS.items() if text.removesuffix(" now") in texts)


def test_banking_pairs_match_by_intent_and_share_no_query(raw: Path) -> None:
    sizes = {"train": 16, "validation": 4, "test": 20}
    splits = build_pairs.banking77(raw, sizes)
    assert splits == build_pairs.banking77(raw, sizes)
    texts: dict[str, set[Any]] = {}
    for name, rows in splits.items():
        assert sum(int(row["label"]) for row in rows) == len(rows) // 2 == sizes[name] // 2
        assert len({frozenset((row["text_a"], row["text_b"])) for row in rows}) == len(rows)
        for row in rows:
            assert row["label"] == (intent_of(str(row["text_a"])) == intent_of(str(row["text_b"])))
            assert row["text_a"] != row["text_b"]
        texts[name] = {row[side] for row in rows for side in ("text_a", "text_b")}
    assert not texts["train"] & texts["validation"] and not texts["train"] & texts["test"]
    with pytest.raises(ValueError, match="distinct pairs, not 5000"):
        build_pairs.banking77(raw, sizes | {"train": 5000})


def test_faq_questions_are_queries_of_their_own_intent(raw: Path) -> None:
    files = build_pairs.banking77_faq(raw)
    assert [row["intent"] for row in files["questions"]] == ["card", "fee", "pin"]
    questions = {row["id"]: str(row["question"]) for row in files["questions"]}
    for split in ("train", "validation", "test"):
        assert files[split]
        for row in files[split]:
            assert intent_of(str(row["query"])) == intent_of(questions[row["question_id"]])
            assert row["query"] not in questions.values()


def test_nfcorpus_takes_direct_links_and_titles_not_linked(raw: Path) -> None:
    for rows in build_pairs.nfcorpus(raw).values():
        matches = {(row["text_a"], row["text_b"]) for row in rows if row["label"] == 1}
        assert matches == {
            ("tea and health", "title 0 of tea"),
            ("tea and health", "title 2 of tea"),
            ("title 3", "title 3 of tea"),
        }
        others = [row["text_b"] for row in rows if row["label"] == 0 and row["text_a"] == "tea and health"]
        assert len(set(others)) == len(others) == 2
        assert not set(others) & {"title 0 of tea", "title 1 of tea", "title 2 of tea"}


def test_a_title_that_two_documents_share_has_one_label(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = raw / "nfcorpus.zip"
    with zipfile.ZipFile(path) as archive:
        read = {name: archive.read(name).decode() for name in archive.namelist()}
    read["nfcorpus/corpus.jsonl"] = read["nfcorpus/corpus.jsonl"].replace("title 1 of", "title 0 of")
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in read.items():
            archive.writestr(name, text)
    sums = path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(build_pairs.SOURCES, "nfcorpus.zip", sums)
    for rows in build_pairs.nfcorpus(raw).values():
        labels: dict[Any, set[Any]] = {}
        for row in rows:
            labels.setdefault((row["text_a"], row["text_b"]), set()).add(row["label"])
        assert all(len(found) == 1 for found in labels.values()) and len(labels) == len(rows)


def test_the_command_downloads_checks_and_writes(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "nfcorpus"
    assert build_pairs.main(["nfcorpus", "--output_dir", str(out)]) == 0
    listed = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text("utf-8").splitlines())
    assert {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in listed} == listed
    assert set(listed) == {"train.jsonl", "validation.jsonl", "test.jsonl"}
    for split in ("train", "validation", "test"):
        assert len(load_pairs(out / f"{split}.jsonl")) == 6


def test_other_files_than_the_owners_are_refused(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (raw / "test.csv").write_bytes((raw / "test.csv").read_bytes()[:-5])
    command = ["banking77_faq", "--output_dir", str(tmp_path / "out")]
    for options in ([], ["--raw", str(raw)]):
        assert build_pairs.main([*command, *options]) == 1
        assert "test.csv has the SHA-256 sum" in capsys.readouterr().err
    (raw / "test.csv").unlink()
    assert build_pairs.main([*command, "--raw", str(raw)]) == 1
    assert "holds no test.csv" in capsys.readouterr().err
    assert build_pairs.main(command) == 1  # nor is it at its address
    assert not (tmp_path / "out").exists()


def test_the_owners_addresses_name_one_version() -> None:
    for name, (address, expected) in build_pairs.SOURCES.items():
        assert address.startswith("https://") and address.endswith(f"/{name}") and "/master/" not in address
        assert len(bytes.fromhex(expected)) == 32


def test_a_folder_holds_one_build(tmp_path: Path) -> None:
    files: Any = {"train": [{"text_a": "a", "text_b": "b", "label": 1}]}
    build_pairs.write(files, tmp_path / "set")
    build_pairs.write(files, tmp_path / "set")
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["SHA256SUMS", "train.jsonl"]
    with pytest.raises(ValueError, match="another build"):
        build_pairs.write({"train": []}, tmp_path / "set")


def test_files_that_have_changed_are_not_said_to_be_there(raw: Path, tmp_path: Path) -> None:
    command = ["banking77_faq", "--raw", str(raw), "--output_dir", str(tmp_path / "faq")]
    assert build_pairs.main(command) == build_pairs.main(command) == 0
    with (tmp_path / "faq" / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write("{}\n")
    assert build_pairs.main(command) != 0
    (tmp_path / "faq" / "train.jsonl").unlink()
    assert build_pairs.main(command) != 0
