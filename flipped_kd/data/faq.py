"""FAQ retrieval: which canonical question answers a query? Pairs to train on, and rankings of all questions.

Files are JSON Lines: queries `{"query": ..., "question_id": ...}`, questions `{"id": ..., "question": ...}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer


@dataclass(frozen=True)
class Faq:
    """Queries with their gold questions.

    Attributes:
        queries: texts of the queries.
        gold: for each query the id of its question.
        questions: texts of all questions by id.
    """

    queries: tuple[str, ...]
    gold: tuple[str, ...]
    questions: Mapping[str, str]


def read_faq(queries_file: str | Path, questions_file: str | Path) -> Faq:
    """Read queries and questions and check that they fit each other.

    Raises:
        ValueError: a file does not exist, a line is no JSON object with these fields, a text is empty, an id occurs
            twice, or a query names a question that is not there; the message names file and line.
    """
    questions: dict[str, str] = {}
    for place, row in _rows(questions_file, ("id", "question")):
        if str(row["id"]) in questions:
            raise ValueError(f"{place}: question id {row['id']!r} occurs twice; give each question its own.")
        questions[str(row["id"])] = row["question"]
    if len(questions) < 2:
        raise ValueError(f"{questions_file} holds {len(questions)} questions: there is nothing to choose between.")
    queries, gold = [], []
    for place, row in _rows(queries_file, ("query", "question_id")):
        if str(row["question_id"]) not in questions:
            raise ValueError(f"{place}: question_id={row['question_id']!r} is none of the ids in {questions_file}.")
        queries.append(row["query"])
        gold.append(str(row["question_id"]))
    if not queries:
        raise ValueError(f"{queries_file} holds no queries.")
    return Faq(tuple(queries), tuple(gold), questions)


def faq_pairs(faq: Faq, *, hard: int = 2, random: int = 2, seed: int = 0) -> datasets.Dataset:
    """Labelled pairs (query, question): the gold question 1; the likest others by TF-IDF and random others 0.

    Args:
        faq: queries and questions.
        hard: negatives a query that share the rarest words with it (TF-IDF cosine, best first).
        random: negatives a query drawn from the rest.
        seed: of the draw.

    Returns:
        Columns text_a (the query), text_b, label; a query's pairs stand together, the gold one first. Where there are
        fewer other questions than asked for, all of them.
    """
    ids = list(faq.questions)
    texts = [faq.questions[key] for key in ids]
    place = {key: row for row, key in enumerate(ids)}
    tfidf = TfidfVectorizer().fit([*texts, *faq.queries])
    likeness = (tfidf.transform(faq.queries) @ tfidf.transform(texts).T).toarray()
    rng = np.random.default_rng(seed)
    rows: dict[str, list[Any]] = {"text_a": [], "text_b": [], "label": []}
    for query, key, scores in zip(faq.queries, faq.gold, likeness, strict=True):
        gold = place[key]
        others = [row for row in np.argsort(-scores, kind="stable") if row != gold]
        rest = others[hard:]
        drawn = rng.choice(len(rest), size=min(random, len(rest)), replace=False)
        chosen = [gold, *others[:hard], *(rest[number] for number in sorted(drawn))]
        rows["text_a"] += [query] * len(chosen)
        rows["text_b"] += [texts[row] for row in chosen]
        rows["label"] += [1] + [0] * (len(chosen) - 1)
    return datasets.Dataset.from_dict(rows)


def subset(faq: Faq, size: int | None, seed: int = 0) -> Faq:
    """A random part of the queries, in their order, with all questions; all queries if `size` is None or larger."""
    if size is None or size >= len(faq.queries):
        return faq
    rows = np.sort(np.random.default_rng(seed).choice(len(faq.queries), size=size, replace=False))
    return Faq(tuple(faq.queries[row] for row in rows), tuple(faq.gold[row] for row in rows), faq.questions)


def _rows(path: str | Path, fields: tuple[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """(place for messages, row) of each line."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{str(path)!r} does not exist: give a JSON Lines file with {' and '.join(fields)}.")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place} is no JSON: {error}.") from error
        missing = [name for name in fields if not isinstance(row, dict) or row.get(name) in (None, "")]
        if missing:
            raise ValueError(f"{place} has no {missing[0]!r}: give a JSON object with {' and '.join(fields)}.")
        text = row["query" if "query" in fields else "question"]
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{place}: {text!r} is no text.")
        found.append((place, row))
    return found
