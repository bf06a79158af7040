"""FAQ retrieval: which canonical question answers a query? Pairs to train on, and rankings of all questions.

Files are JSON Lines: queries `{"query": ..., "question_id": ...}`, questions `{"id": ..., "question": ...}`.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from .tables import numbered_json_lines
from .validation import text_fault

logger = logging.getLogger(__name__)

# Letters of languages that are written without spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, Japanese,
# Chinese, with what is written above and below them.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u312f\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]+"
)
_QUERIES = 100  # compared with every question at a time: all at once they would take gigabytes
_WORD = re.compile(r"\b\w\w+\b")


@dataclass(frozen=True)
class Faq:
    """Queries with their gold questions.

    A query may stand there several times, with other gold questions: all of them are right, for each of its rows.

    Attributes:
        queries: texts of the queries.
        gold: for each query the id of its question.
        questions: texts of all questions by id.
        answers: ids of all right questions by text of the query; by default what queries and gold say.
    """

    queries: tuple[str, ...]
    gold: tuple[str, ...]
    questions: Mapping[str, str]
    answers: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.answers:
            object.__setattr__(self, "answers", _answers(self.queries, self.gold, self.questions))

    @cached_property
    def relevant(self) -> tuple[frozenset[str], ...]:
        """For each query the ids of all questions that are right."""
        return tuple(self.answers[query] for query in self.queries)


def _answers(queries: Sequence[str], gold: Sequence[str], questions: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """The ids of the right questions by query; a question of the same text under another id is as right."""
    same: dict[str, set[str]] = {}
    for key, text in questions.items():
        same.setdefault(text, set()).add(key)
    found: dict[str, set[str]] = {}
    for query, key in zip(queries, gold, strict=True):
        found.setdefault(query, set()).update(same[questions[key]])
    return {query: frozenset(keys) for query, keys in found.items()}


def read_faq(queries_file: str | Path, questions_file: str | Path) -> Faq:
    """Read queries and questions and check that they fit each other.

    Blank lines are skipped. A question that stands there twice under two ids is one question, under the first of them.

    Raises:
        ValueError: a file does not exist, a line is no JSON object in UTF-8 with these fields, a text is empty, an id
            occurs twice, or a query names a question that is not there; the message names file and line.
    """
    questions: dict[str, str] = {}
    first: dict[str, str] = {}  # id by text
    one: dict[str, str] = {}  # the id of its text by id
    for place, row in _rows(questions_file, ("id", "question")):
        key, text = str(row["id"]), row["question"]
        if key in one:
            raise ValueError(f"{place}: question id {row['id']!r} occurs twice; give each question its own.")
        one[key] = first.setdefault(text, key)
        questions[one[key]] = text
    if len(questions) < len(one):
        twice = next(key for key, other in one.items() if key != other)
        logger.warning(
            "%s holds %d questions that stand there already, such as id %r, the same as %r: each is taken once",
            *(questions_file, len(one) - len(questions), twice, one[twice]),
        )
    if len(questions) < 2:
        raise ValueError(f"{questions_file} holds {len(questions)} questions: there is nothing to choose between.")
    queries, gold = [], []
    for place, row in _rows(queries_file, ("query", "question_id")):
        if str(row["question_id"]) not in one:
            raise ValueError(f"{place}: question_id={row['question_id']!r} is none of the ids in {questions_file}.")
        queries.append(row["query"])
        gold.append(one[str(row["question_id"])])
    if not queries:
        raise ValueError(f"{queries_file} holds no queries.")
    return Faq(tuple(queries), tuple(gold), questions)


def faq_pairs(faq: Faq, *, hard: int = 2, random: int = 2, seed: int = 0) -> datasets.Dataset:
    """Labelled pairs (query, question): the gold question 1; the likest others by TF-IDF and random others 0.

    Others are questions that are right in no row of the same query, compared by their texts.

    Args:
        faq: queries and questions.
        hard: negatives a query that share the rarest words with it (TF-IDF cosine, best first); in languages written
            without spaces, the rarest letters and pairs of letters.
        random: negatives a query drawn from the rest.
        seed: of the draw.

    Returns:
        Columns text_a (the query), text_b, label; a query's pairs stand together, the gold one first. Where there are
        fewer other questions than asked for, all of them.
    """
    texts = list(dict.fromkeys(faq.questions.values()))
    tfidf = TfidfVectorizer(analyzer=_terms).fit([*texts, *faq.queries])
    asked, by_term = tfidf.transform(faq.queries), tfidf.transform(texts).T.tocsr()
    starts = range(0, len(faq.queries), _QUERIES)
    likeness = (row for start in starts for row in (asked[start : start + _QUERIES] @ by_term).toarray())
    rng = np.random.default_rng(seed)
    rows: dict[str, list[Any]] = {"text_a": [], "text_b": [], "label": []}
    for query, key, keys, scores in zip(faq.queries, faq.gold, faq.relevant, likeness, strict=True):
        right = {faq.questions[other] for other in keys}
        others = [texts[row] for row in np.argsort(-scores, kind="stable") if texts[row] not in right]
        rest = others[hard:]
        drawn = rng.choice(len(rest), size=min(random, len(rest)), replace=False)
        chosen = [faq.questions[key], *others[:hard], *(rest[number] for number in sorted(drawn))]
        rows["text_a"] += [query] * len(chosen)
        rows["text_b"] += chosen
        rows["label"] += [1] + [0] * (len(chosen) - 1)
    return datasets.Dataset.from_dict(rows)


def _terms(text: str) -> list[str]:
    """What TF-IDF counts in a text: words of two letters and more; letters and pairs of letters where no spaces part
    words; of a text without either, its characters."""
    text = text.lower()
    runs = _UNSPACED.findall(text)
    pairs = [run[place : place + 2] for run in runs for place in range(len(run) - 1)]
    return _WORD.findall(_UNSPACED.sub(" ", text)) + [*"".join(runs)] + pairs or [*"".join(text.split())]


def subset(faq: Faq, size: int | None, seed: int = 0) -> Faq:
    """A random part of the queries, in their order, with all questions; all queries if `size` is None or larger."""
    if size is None or size >= len(faq.queries):
        return faq
    rows = np.sort(np.random.default_rng(seed).choice(len(faq.queries), size=size, replace=False))
    # What is right for a query is known from the rows that are left out, too.
    return dataclasses.replace(
        faq, queries=tuple(faq.queries[row] for row in rows), gold=tuple(faq.gold[row] for row in rows)
    )


def _rows(path: str | Path, fields: tuple[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place for messages, row) of each line."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{str(path)!r} does not exist: give a JSON Lines file with {' and '.join(fields)}.")
    with open(path, "rb") as file:
        for number, row in numbered_json_lines(file, str(path)):
            place = f"{path}, line {number}"
            missing = [name for name in fields if row.get(name) in (None, "")]
            if missing:
                raise ValueError(f"{place} has no {missing[0]!r}: give a JSON object with {' and '.join(fields)}.")
            column = "query" if "query" in fields else "question"
            fault = text_fault(row[column], column)
            if fault is not None:
                raise ValueError(f"{place}: {fault}.")
            yield place, row
