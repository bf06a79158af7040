"""Evaluate a trained matcher with the public `mteb` package: its vectors, and its scores as a reranker of their head.

    python recipes/evaluate_mteb.py MODEL --corpus corpus.jsonl --queries queries.jsonl --qrels qrels.tsv
    python recipes/evaluate_mteb.py MODEL --task NFCorpus

Files are those of BEIR: corpus and queries in JSON Lines with `_id` and `text` (a corpus also `title`), qrels a TSV of
query, document and score with a header. `--task` names one of mteb's own, which it downloads. `--teacher` names an
encoder of sentence-transformers, which is judged beside. In Python,
`MatcherEncoder` and `MatcherReranker` go into `mteb.evaluate` as they are. Needs `pip install mteb`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_meta import ModelMeta
from sentence_transformers import SentenceTransformer

from flipped_kd import FlippedMatcher
from flipped_kd.data.tables import numbered_json_lines
from flipped_kd.utils.screen import unfailing_screen

METRICS = ("ndcg_at_10", "mrr_at_10", "recall_at_10", "hit_rate_at_1")


def texts_of(batches: Iterable[Any]) -> list[str]:
    """The texts of mteb's batches, in order."""
    return [text for batch in batches for text in batch["text"]]


class _Matcher:
    """What both faces of a matcher share."""

    def __init__(self, matcher: FlippedMatcher, name: str) -> None:
        self.matcher = matcher
        self.mteb_model_meta = ModelMeta.create_empty({"name": f"flipped_kd/{Path(name).name}", "revision": "local"})


class MatcherEncoder(_Matcher):
    """mteb's EncoderProtocol: vectors of texts alone, and their cosines."""

    def encode(self, inputs: Iterable[Any], *, batch_size: int = 32, **_: Any) -> np.ndarray:
        """Vectors of the texts, (n, D)."""
        return self.matcher.encode(texts_of(inputs), batch_size=batch_size, show_progress_bar=False)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of all pairs, (n, m): the vectors have unit length."""
        return np.asarray(embeddings1) @ np.asarray(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of row i with row i, (n,)."""
        return (np.asarray(embeddings1) * np.asarray(embeddings2)).sum(axis=1)


class MatcherReranker(_Matcher):
    """mteb's CrossEncoderProtocol: probabilities of a match, by one of the matcher's scores.

    Args:
        matcher: in use.
        name: what to call it.
        score: "answer", "similarity" or "both"; None for the one it was saved with.
        known: both raw scores of pairs, which rerankers by several scores may share; what is missing is added.
    """

    def __init__(
        self,
        matcher: FlippedMatcher,
        name: str,
        score: Any = None,
        known: dict[tuple[str, str], tuple[float, float]] | None = None,
    ) -> None:
        super().__init__(matcher, name)
        self.score, self.known = score, known

    def predict(self, inputs1: Iterable[Any], inputs2: Iterable[Any], *, batch_size: int = 32, **_: Any) -> np.ndarray:
        """Probability of each pair, (n,)."""
        pairs = list(zip(texts_of(inputs1), texts_of(inputs2), strict=True))
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False}
        if self.known is None or self.matcher.match_score is None:
            return self.matcher.predict(pairs, score=self.score, **options)
        if new := [pair for pair in dict.fromkeys(pairs) if pair not in self.known]:
            self.known.update(zip(new, zip(*self.matcher.scores(new, **options), strict=True), strict=True))
        answer, similarity = np.array([self.known[pair] for pair in pairs]).T
        return self.matcher.match_score.probability(answer, similarity, self.score)


def named_task(name: str) -> Any:
    """A task of mteb's own.

    Raises:
        ValueError: it has none of this name; the message names the one that is like it, if any.
    """
    try:
        return mteb.get_task(name)
    except KeyError as error:
        said = str(error.args[0]).removeprefix("KeyError: ")
        raise ValueError(f"--task: {said} Give one of `mteb.get_tasks()`.") from None


def local_task(
    corpus: Path, queries: Path, qrels: Path, name: str = "LocalRetrieval", max_queries: int | None = None
) -> AbsTaskRetrieval:
    """A retrieval task of BEIR's three files.

    Args:
        corpus: JSON Lines with `_id`, `text` and perhaps `title`, which then goes before the text.
        queries: JSON Lines with `_id` and `text`.
        qrels: TSV with a header; query id, document id, relevance. Queries that it does not name are left out.
        name: of the task.
        max_queries: of those in qrels, in its order, the first so many; None takes all.

    Raises:
        ValueError: a file is absent or a line of it is not as it should be.
    """
    documents = {row["_id"]: " ".join(filter(None, (row.get("title"), row["text"]))) for row in _json_lines(corpus)}
    relevant: dict[str, dict[str, int]] = {}
    for number, line in enumerate(qrels.read_text("utf-8").splitlines()[1:], 2):
        parts = line.split("\t")
        if len(parts) != 3 or parts[1] not in documents:
            raise ValueError(
                f"{qrels.name}, line {number} is {line!r}: give query id, id of a document and score, with tabs "
                "between."
            )
        relevant.setdefault(parts[0], {})[parts[1]] = int(parts[2])
    if max_queries is not None and max_queries < len(relevant):
        print(f"{max_queries} of {len(relevant)} queries")
        relevant = dict(islice(relevant.items(), max_queries))
    asked = {row["_id"]: row["text"] for row in _json_lines(queries) if row["_id"] in relevant}
    if unknown := relevant.keys() - asked.keys():
        raise ValueError(f"{qrels.name} names queries that {queries.name} lacks, such as {min(unknown)!r}.")

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=name,
            description="Texts of one's own.",
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            dataset={"path": "local", "revision": "local"},
        )

        def load_data(self, *_: Any, **__: Any) -> None:
            if not self.data_loaded:
                self.corpus, self.queries = {"test": dict(documents)}, {"test": dict(asked)}
                self.relevant_docs = {"test": {query: dict(found) for query, found in relevant.items()}}
                self.convert_v1_dataset_format_to_v2(num_proc=None)
                self.data_loaded = True

    return Local()


def evaluate(
    matcher: FlippedMatcher,
    name: str,
    task: Any,
    rerank: int = 0,
    scores: Sequence[str] = ("answer", "both"),
    teacher: str | None = None,
) -> dict[str, dict[str, float]]:
    """nDCG@10 and more of a retrieval task, by the vectors and by each score as a reranker of their head.

    Args:
        matcher: in use.
        name: what to call it.
        task: of mteb.
        rerank: how many of the nearest are ranked again; 0 for none.
        scores: what they are ranked by.
        teacher: an encoder of sentence-transformers whose vectors rank too, a folder or a Hub name.

    Returns:
        By way of ranking, mteb's metrics.

    Raises:
        ValueError: the task has several splits or subsets, or the matcher lacks a score.
    """
    splits, subsets = task.metadata.eval_splits, task.hf_subsets or ["default"]
    if len(splits) != 1 or len(subsets) != 1:
        raise ValueError(
            f"the task {task.metadata.name!r} has the splits {list(splits)} and the subsets {list(subsets)}: give one "
            "with one of each."
        )
    if rerank and matcher.match_score is None and set(scores) - {"answer"}:
        raise ValueError(
            f"{name} has no match score, which {list(scores)} need: rank by the vectors alone (--rerank 0), or fit "
            "one by `flipped-kd calibrate`."
        )
    found = {}
    known: dict[tuple[str, str], tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"cache": None, "show_progress_bar": False}
        if teacher is not None:
            # A teacher saved in float16 would be read so, and be many times slower on a CPU.
            encoder = SentenceTransformer(teacher, model_kwargs={"dtype": matcher.model.dtype})
            found["teacher's vectors"] = metrics_of(mteb.evaluate(encoder, task, **options))
        result = mteb.evaluate(MatcherEncoder(matcher, name), task, prediction_folder=folder, **options)
        found["vectors"] = metrics_of(result)
        for score in scores if rerank else ():
            again = task.convert_to_reranking(folder, top_k=rerank)
            result = mteb.evaluate(MatcherReranker(matcher, name, score, known), again, **options)
            found[f"{rerank} nearest by {score}"] = metrics_of(result)
    return found


def metrics_of(result: Any) -> dict[str, float]:
    """What `METRICS` names, of a task of one split that mteb has judged."""
    ((scores,),) = result.task_results[0].scores.values()
    return {metric: float(scores[metric]) for metric in METRICS if metric in scores}


def _json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open("rb") as file:
        for number, row in numbered_json_lines(file, path.name):
            if not {"_id", "text"} <= row.keys():
                raise ValueError(f"{path.name}, line {number} needs `_id` and `text`: it has {sorted(row)}.")
            rows.append(row)
    return rows


@unfailing_screen()
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="adapter or merged model, a folder or a Hub name")
    parser.add_argument("--corpus", type=Path, help="corpus of a task of your own")
    parser.add_argument("--queries", type=Path, help="queries of a task of your own")
    parser.add_argument("--qrels", type=Path, help="qrels of a task of your own")
    parser.add_argument("--task", help="a retrieval task of mteb, in the place of the three files")
    parser.add_argument(
        "--max-queries", "--max_queries", type=int, metavar="N", help="of your own task's queries the first N"
    )
    parser.add_argument("--teacher", help="encoder of sentence-transformers to judge beside, a folder or a Hub name")
    parser.add_argument("--rerank", type=int, default=20, metavar="N", help="rank the nearest N again (20; 0: none)")
    options = parser.parse_args(argv)
    files = (options.corpus, options.queries, options.qrels)
    if (options.task is None) == (None in files) or options.task and any(files):
        parser.error("give --corpus, --queries and --qrels, or --task")
    if options.max_queries is not None and (options.task or options.max_queries < 1):
        parser.error("--max-queries is a whole number from 1, for --queries of your own")
    try:
        task = named_task(options.task) if options.task else local_task(*files, max_queries=options.max_queries)
        matcher = FlippedMatcher.from_pretrained(options.model)
        found = evaluate(matcher, options.model, task, options.rerank, teacher=options.teacher)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    width = max(map(len, found))
    print(" " * width, *(f"{metric:>12}" for metric in next(iter(found.values()))))
    for way, metrics in found.items():
        print(f"{way:{width}}", *(f"{value:12.4f}" for value in metrics.values()))


if __name__ == "__main__":
    main()
