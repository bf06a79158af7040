"""Build pair sets for the recipes from their owners' public files: banking77, banking77_faq, nfcorpus.

    python recipes/data/build_pairs.py banking77 --output_dir data/banking77
    python recipes/data/build_pairs.py nfcorpus --output_dir data/nfcorpus --raw FOLDER_WITH_THE_FILES

The files are downloaded unless --raw names a folder that has them; either way they must have the SHA-256 sums below.
Licences are the owners': banking77 CC BY 4.0 (PolyAI), NFCorpus for academic use. The rows are drawn by this script,
the same each time; sets that others have drawn from the same files hold other rows. Every build writes SHA256SUMS
beside its files, and refuses to overwrite files that another build of the same folder has left with other sums.

- banking77: two queries match if they have the same intent. As many matches as others; half of the others are among
  the likest queries of another intent (TF-IDF). Test pairs come from the owners' test file, validation from train.
- banking77_faq: the query of each intent that is most like all others of it (TF-IDF) is its canonical question.
- nfcorpus: a query and the title of a document; directly linked ones match (relevance 2 in BEIR). As many others,
  half of them the likest titles that are not linked (TF-IDF). Splits are the owners', by query.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import random
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from mini_texts import Row, to_jsonl
from sklearn.feature_extraction.text import TfidfVectorizer

from flipped_kd.utils.atomic import check_target, whole_or_absent

BANKING = (
    "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/"
    "57ec275d8078af65b7731c2a98be812d844a6d6b/banking_data"
)
BEIR = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"
# The owners' files: where they are, and their SHA-256 sums.
SOURCES = {
    "train.csv": (f"{BANKING}/train.csv", "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b"),
    "test.csv": (f"{BANKING}/test.csv", "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d"),
    "nfcorpus.zip": (f"{BEIR}/nfcorpus.zip", "efe5be03f8c5b86a5870102d0599d227c8c6e2484328e68c6522560385671b0b"),
}
SUMS_FILE = "SHA256SUMS"
SEED = 0
PAIRS = {"train": 8000, "validation": 1000, "test": 2000}
VALIDATION_SHARE = 0.12  # of the owners' training queries of each intent
LIKEST = 3  # a hard negative is drawn among this many likest queries of other intents
DIRECT = 2  # BEIR's relevance of a document that the query's page links to
DRAWS = 100  # for each pair at most

Query = tuple[str, str]  # text, intent


def fetch(name: str, raw: Path | None) -> bytes:
    """A file of the owners: from `raw`, or downloaded.

    Raises:
        FileNotFoundError: `raw` does not hold it.
        ValueError: it is another file than the one described here.
        OSError: it cannot be downloaded.
    """
    address, expected = SOURCES[name]
    if raw is not None:
        if not (raw / name).is_file():
            raise FileNotFoundError(f"{raw} holds no {name}: download {address} into it, or leave --raw out.")
        content = (raw / name).read_bytes()
    else:
        with urllib.request.urlopen(address, timeout=60) as response:
            content = response.read()
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(
            f"{name} has the SHA-256 sum {found}, not {expected}: it is cut short or another version. Download "
            f"{address} again."
        )
    return content


def banking_queries(raw: Path | None) -> dict[str, list[Query]]:
    """The owners' queries by split, each text once, validation drawn from train."""
    splits: dict[str, list[Query]] = {}
    taken: set[str] = set()
    for split in ("test", "train"):  # a text of the test file is for testing
        splits[split] = []
        for row in csv.DictReader(io.StringIO(fetch(f"{split}.csv", raw).decode("utf-8"))):
            if (text := row["text"].strip()) not in taken:
                taken.add(text)
                splits[split].append((text, row["category"]))
    rng = random.Random(SEED)
    train, validation = [], []
    for intent in sorted({intent for _, intent in splits["train"]}):
        own = [query for query in splits["train"] if query[1] == intent]
        rng.shuffle(own)
        size = max(2, round(VALIDATION_SHARE * len(own)))
        validation += own[:size]
        train += own[size:]
    return {"train": train, "validation": validation, "test": splits["test"]}


def banking77(raw: Path | None = None, sizes: Mapping[str, int] = PAIRS) -> dict[str, list[Row]]:
    """Pairs of queries by split.

    Raises:
        ValueError: as `fetch`, or there are too few queries for so many pairs.
    """
    rng = random.Random(SEED)
    return {split: _query_pairs(queries, sizes[split], rng) for split, queries in banking_queries(raw).items()}


def _query_pairs(queries: Sequence[Query], count: int, rng: random.Random) -> list[Row]:
    """Half matches, a quarter hard and a quarter random others, no pair twice in either order."""
    likeness = likeness_of([text for text, _ in queries])
    by_intent: dict[str, list[int]] = {}
    for place, (_, intent) in enumerate(queries):
        by_intent.setdefault(intent, []).append(place)

    def partner(place: int, kind: str) -> int:
        intent = queries[place][1]
        if kind == "match":
            return rng.choice(by_intent[intent])
        if kind == "random":
            return rng.randrange(len(queries))
        ranked = np.argsort(-likeness(place), kind="stable")
        return rng.choice([int(other) for other in ranked if queries[other][1] != intent][:LIKEST])

    made: dict[frozenset[int], Row] = {}
    for _ in range(DRAWS * count):
        if len(made) == count:
            return list(made.values())
        kind = ("match", "hard", "match", "random")[len(made) % 4]
        place = rng.randrange(len(queries))
        other = partner(place, kind)
        label = int(queries[place][1] == queries[other][1])
        if other != place and label == (kind == "match"):
            row: Row = {"text_a": queries[place][0], "text_b": queries[other][0], "label": label}
            made.setdefault(frozenset((place, other)), row)
    raise ValueError(f"{len(queries)} queries give {len(made)} distinct pairs, not {count}: ask for fewer.")


def likeness_of(texts: Sequence[str]) -> Callable[[int], np.ndarray]:
    """TF-IDF cosines of one text, by its row, with all."""
    matrix = TfidfVectorizer().fit_transform(texts)
    return lambda row: (matrix @ matrix[row].T).toarray()[:, 0]


def banking77_faq(raw: Path | None = None) -> dict[str, list[Row]]:
    """Canonical questions, and queries with their question's id by split."""
    splits = banking_queries(raw)
    questions: list[Row] = []
    number: dict[str, int] = {}
    taken = set()
    for intent in sorted({intent for _, intent in splits["train"]}):
        own = [text for text, other in splits["train"] if other == intent]
        matrix = TfidfVectorizer().fit_transform(own)
        canonical = own[int(np.asarray((matrix @ matrix.T).sum(1)).argmax())]
        number[intent] = len(questions)
        taken.add(canonical)
        questions.append({"id": number[intent], "intent": intent, "question": canonical})
    files: dict[str, list[Row]] = {"questions": questions}
    for split, queries in splits.items():
        files[split] = [{"query": text, "question_id": number[key]} for text, key in queries if text not in taken]
    return files


def nfcorpus(raw: Path | None = None) -> dict[str, list[Row]]:
    """Pairs of a query and a title by split."""
    with zipfile.ZipFile(io.BytesIO(fetch("nfcorpus.zip", raw))) as archive:
        read = {name.removeprefix("nfcorpus/"): archive.read(name).decode("utf-8") for name in archive.namelist()}
    titles = {row["_id"]: row["title"].strip() for row in map(json.loads, read["corpus.jsonl"].splitlines())}
    queries = {row["_id"]: row["text"].strip() for row in map(json.loads, read["queries.jsonl"].splitlines())}
    distinct = list(dict.fromkeys(title for title in titles.values() if title))
    tfidf = TfidfVectorizer().fit([*distinct, *queries.values()])
    matrix = tfidf.transform(distinct)
    rng = random.Random(SEED)
    files: dict[str, list[Row]] = {}
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        linked: dict[str, dict[str, int]] = {}  # query -> title -> the highest relevance of documents so called
        for line in read[f"qrels/{name}.tsv"].splitlines()[1:]:
            query, document, relevance = line.split("\t")
            if title := titles.get(document):
                known = linked.setdefault(queries[query], {})
                known[title] = max(known.get(title, 0), int(relevance))
        files[split] = []
        for query, known in linked.items():
            direct = [title for title, relevance in known.items() if relevance == DIRECT]
            scores = (matrix @ tfidf.transform([query]).T).toarray()[:, 0]
            others = [distinct[place] for place in np.argsort(-scores, kind="stable") if distinct[place] not in known]
            hard = others[: len(direct) // 2]
            rest = others[len(hard) :]
            chosen = [*hard, *rng.sample(rest, min(len(rest), len(direct) - len(hard)))]
            files[split] += [{"text_a": query, "text_b": title, "label": 1} for title in direct]
            files[split] += [{"text_a": query, "text_b": title, "label": 0} for title in chosen]
    return files


BUILDERS: dict[str, Callable[..., dict[str, list[Row]]]] = {
    "banking77": banking77,
    "banking77_faq": banking77_faq,
    "nfcorpus": nfcorpus,
}


def write(files: dict[str, list[Row]], folder: Path) -> None:
    """Write NAME.jsonl and SHA256SUMS, all or nothing; the folder must be new, or hold the very same files.

    Raises:
        ValueError: the folder holds files with other sums, or without any; or one of them is gone or has changed.
    """
    contents = {f"{name}.jsonl": to_jsonl(rows) for name, rows in files.items()}
    sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in contents.items()}
    listing = "".join(f"{total}  {name}\n" for name, total in sorted(sums.items()))
    if (folder / SUMS_FILE).is_file():
        if (folder / SUMS_FILE).read_text(encoding="utf-8") != listing:
            raise ValueError(f"{folder} holds another build (its {SUMS_FILE} differs): name another folder.")
        for name, total in sums.items():
            path = folder / name
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != total:
                raise ValueError(f"{path} is not there or has changed since it was built: remove {folder} and repeat.")
        return
    check_target(folder)
    with whole_or_absent(folder) as partial:
        for name, text in contents.items():
            (partial / name).write_text(text, encoding="utf-8")
        (partial / SUMS_FILE).write_text(listing, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(BUILDERS))
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to make")
    parser.add_argument("--raw", type=Path, help="folder that holds the owners' files already")
    options = parser.parse_args(argv)
    try:
        files = BUILDERS[options.name](options.raw)
        write(files, options.output_dir)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, rows in files.items():
        print(f"{name}.jsonl: {len(rows)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
