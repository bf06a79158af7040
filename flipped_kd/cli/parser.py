"""What the `flipped-kd` command understands. Nothing heavy is imported here, so that --help answers at once.

One file, though long: it is the whole command line in one place, a function a verb.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..prompts.reranker_forms import RERANKERS
from ..utils.choices import INDEX_KINDS, SCORE_KINDS
from ..utils.redaction import SERVER_TOKEN
from ..utils.version import __version__
from .arguments import (
    PROG,
    TABLES,
    Parser,
    add_columns,
    add_common,
    add_job,
    add_labelled,
    add_model,
    add_report,
    add_score,
    add_skip,
    add_verb,
    count,
    number,
    threshold,
)

DESCRIPTION = """\
Flipped knowledge distillation: train an LLM to match texts with a small encoder as its teacher, then score, encode,
rank and search with it, and publish it.

MODEL is always a folder or a Hub name of an adapter or of a merged model. Tables are JSON Lines, CSV, TSV or Parquet,
by the ending of their name; "-" is JSON Lines from standard input or to standard output. Tables of any size are read
and written in parts: a command that was interrupted goes on where it stopped when it is given again, and its output
file appears whole or not at all. `flipped-kd VERB --help` tells more.

An output that is there is replaced only with --overwrite, an input never. What goes on with its own needs no
--overwrite: a table command, train and push with what they have begun, serve with the index of its corpus, calibrate
without -o with the model's scores, card with a card that nobody has edited. A link is followed; a device or a pipe is
written into.
"""
EPILOG = """\
examples:
  flipped-kd train --train_file train.jsonl --validation_file dev.jsonl --test_file test.jsonl \\
      --teacher sentence-transformers/all-MiniLM-L6-v2 --student Qwen/Qwen2.5-0.5B --output_dir outputs/mine
  flipped-kd predict outputs/mine pairs.csv --output scored.csv
  flipped-kd search outputs/mine queries.jsonl corpus.jsonl --top-k 10 --rerank 50 --output hits.jsonl
  flipped-kd push outputs/mine me/my-matcher --merged --private

exit codes: 0 done, 1 failed at work (network, disk, memory), 2 wrong usage or bad input, 130 interrupted.
A token for the Hub is taken from `hf auth login` or the variable HF_TOKEN, never from an option.
"""


def build_parser() -> Parser:
    """The parser of all verbs."""
    parser = Parser(prog=PROG, description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    add_common(parser)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for add in (
        _train,
        _evaluate,
        _calibrate,
        _predict,
        _encode,
        _rank,
        _search,
        _serve,
        _merge,
        _push,
        _card,
        _report,
        _check_teacher,
    ):
        add(verbs)
    return parser


def _train(verbs: Any) -> None:
    # Its settings are those of dataclasses that need torch: `commands.train` reads them and shows their help.
    verbs.add_parser(
        "train",
        help="train plainly and flipped on labelled pairs, compare on test, keep the flipped adapter",
        add_help=False,
    )


def _evaluate(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "evaluate",
        "MODEL PAIRS",
        "judge a model on labelled pairs",
        "Prints F1, precision, recall and accuracy at the threshold that was chosen on validation pairs and saved "
        "with the model, and at a probability of .5, AUC and average precision, for each score it has.",
    )
    add_model(parser)
    parser.add_argument("pairs", metavar="PAIRS", help="file or Hub data set with columns text_a, text_b, label")
    parser.add_argument("--score", choices=SCORE_KINDS, help="one score only")
    add_report(parser, "write the metrics as JSON; -: on the screen")
    add_labelled(parser)


def _calibrate(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "calibrate",
        "MODEL PAIRS [--min-precision P]",
        "fit a model's scores and thresholds anew on labelled pairs",
        "For pairs of another kind, or with another share of matches, than those the model was validated on. Writes "
        "match_score.json into the model's folder: how similarity and both become probabilities, and the threshold "
        "from which on a pair is said to match, by the best F1 or by a precision. The model stays as it is.",
    )
    add_model(parser)
    parser.add_argument("pairs", metavar="PAIRS", help="file or Hub data set with columns text_a, text_b, label")
    parser.add_argument(
        "--min-precision",
        type=number(float, 0, 1),
        metavar="P",
        help="thresholds with the most recall at this precision (default: with the best F1)",
    )
    add_score(parser, "what predictions are made of from now on")
    add_report(parser, "write here, not into the model's folder; -: on the screen")
    add_labelled(parser)


def _predict(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "predict",
        "MODEL PAIRS [-o FILE]",
        "add match probabilities to a table of pairs",
        "Every row of PAIRS is written again with a column `score`, the probability that its two texts match.\n\n"
        "On several GPUs: accelerate launch --multi_gpu -m flipped_kd predict ...",
    )
    add_model(parser)
    parser.add_argument("pairs", metavar="PAIRS", help=f"{TABLES}; - for JSON Lines from standard input")
    add_score(parser, "what the probability is made of")
    parser.add_argument(
        "--all-scores",
        action="store_true",
        help="add also score_answer, score_similarity, score_both, and what they are made of: answer_log_odds, cosine",
    )
    parser.add_argument(
        "--threshold",
        type=threshold,
        metavar="T",
        help="add a column `match`: probability at least T; tuned: at least the threshold chosen on validation pairs",
    )
    parser.add_argument("--column-prefix", default="", metavar="P", help="put before the names of all added columns")
    add_skip(add_columns(parser, "text_a", "text_b"))
    add_job(parser, 1024)


def _encode(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "encode",
        "MODEL TEXTS [-o FILE]",
        "add vectors to a table of texts",
        "Every row of TEXTS is written again with a column `vector` (unit length, float32); a .npy file holds the "
        "vectors alone.\n\nOn several GPUs: accelerate launch --multi_gpu -m flipped_kd encode ...",
    )
    add_model(parser)
    parser.add_argument("texts", metavar="TEXTS", help=f"{TABLES}, or .txt with a text a line; - for standard input")
    parser.add_argument("--column-prefix", default="", metavar="P", help="put before the name of the added column")
    add_skip(add_columns(parser, "text"))
    add_job(parser, 1024, ", or .npy")


def _rank(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "rank",
        "MODEL QUERY DOCUMENTS [-o FILE]",
        "rank documents by their probability of matching a query",
        "Writes corpus_id (the row's number, the first is 0, or its --id-column), score and text, the best first.",
    )
    add_model(parser)
    parser.add_argument("query", metavar="QUERY", help="the query, a text")
    parser.add_argument("documents", metavar="DOCUMENTS", help=f"{TABLES}, or .txt with a text a line")
    parser.add_argument("--top-k", type=count, metavar="K", help="the best K only (default: all)")
    add_score(parser, "what the probability is made of")
    group = add_columns(parser, "text")
    group.add_argument("--id-column", metavar="NAME", help="column whose values name the documents")
    add_skip(group)
    add_job(parser, 1024)


def _search(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "search",
        "MODEL QUERIES CORPUS [-o FILE]",
        "find the texts of a corpus that match queries",
        "Retrieves by the cosine of vectors; with --rerank ranks the nearest again by their probability of matching. "
        "Writes a row for each result: query_id, query, rank (from 1), corpus_id, score, text. Ids are the rows' "
        "numbers (the first is 0), or the values of the columns named.",
    )
    add_model(parser)
    parser.add_argument("queries", metavar="QUERIES", help=f"{TABLES}, or .txt with a query a line")
    parser.add_argument("corpus", metavar="CORPUS", help="such a file, or a folder written by --save-index")
    parser.add_argument("--top-k", type=count, default=10, metavar="K", help="results for each query (10)")
    parser.add_argument(
        "--rerank",
        type=number(int, 0),
        default=0,
        metavar="N",
        help="rank the nearest N again, N at least K (0: none)",
    )
    add_score(parser, "what --rerank ranks by")
    parser.add_argument(
        "--save-index", metavar="FOLDER", help="keep the corpus with its vectors, or use those that are kept there"
    )
    parser.add_argument(
        "--index-kind",
        choices=INDEX_KINDS,
        help="exact compares with every text; hnsw and ivf look at a part of them, by FAISS, for large corpora (auto: "
        "exact up to 100,000 texts, else ivf where FAISS is installed)",
    )
    group = parser.add_argument_group("input")
    group.add_argument("--query-column", default="text", metavar="NAME", help="column of the queries (text)")
    group.add_argument("--text-column", default="text", metavar="NAME", help="column of the corpus's texts (text)")
    group.add_argument("--query-id-column", metavar="NAME", help="column whose values name the queries")
    group.add_argument("--id-column", metavar="NAME", help="column whose values name the corpus's texts")
    add_skip(group)
    add_job(parser, 128)


def _serve(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "serve",
        "MODEL [--corpus CORPUS]",
        "put a model behind HTTP, in the forms that clients know",
        "text-embeddings-inference's /rerank, /embed and /similarity, OpenAI's /v1/embeddings, Cohere's and Jina's "
        "/v1/rerank, and /match and /search of our own; a page to try it on at /, the routes at /docs, figures for "
        "Prometheus at /metrics. SIGTERM ends it when what was begun is answered, SIGHUP reads the corpus anew.\n\n"
        "Listens on this machine only, unless --host says otherwise, and then wants a token. docs/serving.md has "
        "examples for each interface.",
    )
    add_model(parser)
    add_score(parser, "what probabilities are made of")
    group = parser.add_argument_group("corpus")
    group.add_argument("--corpus", metavar="CORPUS", help=f"{TABLES}, .txt with a text a line, or a kept index")
    group.add_argument("--text-column", default="text", metavar="NAME", help="column of the corpus's texts (text)")
    group.add_argument("--id-column", metavar="NAME", help="column whose values name the corpus's texts")
    add_skip(group)
    group.add_argument(
        "--save-index", metavar="FOLDER", help="keep the vectors, so that the next start encodes only what is new"
    )
    group.add_argument("--index-kind", choices=INDEX_KINDS, help="as in `flipped-kd search` (auto)")
    group = parser.add_argument_group("who may ask")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    group.add_argument("--port", type=number(int, 0, 65535), default=8000, help="0 takes a free one (8000)")
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"holds the token that clients must send as a bearer token (default: the variable {SERVER_TOKEN})",
    )
    group.add_argument("--without-token", action="store_true", help="listen to other machines without a token")
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name that the server is asked by; on this machine others are refused (repeatable)",
    )
    group.add_argument("--name", help="of the model, as clients are told (default: the last part of MODEL)")
    group.add_argument("--log-requests", action="store_true", help="a line for each: method, route, status, time")
    group = parser.add_argument_group("limits")
    for option, kind, default, metavar, meaning in (
        ("max-body", count, 2 << 20, "BYTES", "of a request's body"),
        ("max-texts", number(int, 2), 2048, "N", "texts of a request, a pair is two"),
        ("max-tokens", count, 131_072, "N", "tokens of a request"),
        ("max-waiting", count, 512, "N", "requests that wait; more are told to come again"),
        ("max-waiting-tokens", count, 1 << 20, "N", "tokens that wait"),
        ("timeout", number(float, 0.001), 60.0, "SECONDS", "that a request may take"),
        ("wait-ms", number(float, 0, 1000), 5.0, "MS", "that the model waits for more requests to read together"),
    ):
        group.add_argument(f"--{option}", type=kind, default=default, metavar=metavar, help=f"{meaning} ({default:,})")
    group.add_argument("--batch-tokens", type=count, metavar="N", help="tokens read in one go (default: the device's)")


def _merge(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "merge",
        "ADAPTER [ADAPTER ...] -o FOLDER",
        "merge an adapter into its base, as a model that needs no library of ours",
        "The result loads by sentence_transformers.CrossEncoder and AutoModelForCausalLM. It is written only if it "
        "gives the adapter's scores up to rounding. Several adapters are combined into one first.",
    )
    parser.add_argument("adapters", metavar="ADAPTER", nargs="+", help="folders or Hub names of adapters")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where to; must be absent or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier merge")
    parser.add_argument("--base-model", metavar="NAME", help="folder or Hub name of the base, if it has moved")
    parser.add_argument("--revision", help="branch, tag or commit of a single adapter on the Hub")
    parser.add_argument(
        "--no-sentence-transformers", action="store_true", help="leave out the files that CrossEncoder reads"
    )
    several = parser.add_argument_group("several adapters")
    several.add_argument("--weights", type=float, nargs="+", metavar="W", help="one for each (default: their mean)")
    several.add_argument("--method", default="cat", help="of PEFT: cat (exact, default), svd, linear, ties ...")
    several.add_argument("--adapter-only", action="store_true", help="write the combined adapter, do not merge it")


def _push(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "push",
        "FOLDER REPO_ID",
        "upload an adapter or a merged model to the Hub, with its card",
        "Only what a reader needs is sent, never a token or a pickle. A push that failed can be repeated.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder of an adapter or a merged model")
    parser.add_argument("repo_id", metavar="REPO_ID", help="owner/name; created if it is not there")
    parser.add_argument("--merged", action="store_true", help="merge the adapter and push to REPO_ID-merged too")
    parser.add_argument("--private", action="store_true", help="make new repositories private, refuse public ones")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to (main)")
    parser.add_argument("--message", help="message of the commit")
    parser.add_argument("--base-model", metavar="NAME", help="for --merged: the base, if it has moved")
    parser.add_argument("--merged-dir", metavar="FOLDER", help="for --merged: where it is kept (FOLDER-merged)")


def _card(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "card",
        "FOLDER",
        "write the model card (README.md) of an adapter or a merged model",
        "A card that somebody has edited stays as it is.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder of an adapter or a merged model")
    parser.add_argument("--report", type=Path, metavar="FILE", help="report.json of the run (default: FOLDER's)")
    parser.add_argument("--repo-id", metavar="OWNER/NAME", help="the repository that the card's snippets load")
    parser.add_argument("--adapter", type=Path, metavar="FOLDER", help="the adapter that a merged model came from")
    parser.add_argument("--overwrite", action="store_true", help="replace a card that somebody has edited")
    parser.add_argument("--print", action="store_true", dest="show", help="print the card, write nothing")


def _report(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "report",
        "FOLDER",
        "show a finished training as one HTML page with plots",
        "Writes report.html, which opens without network, and plots/*.png into the folder.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="output folder of a finished training or recipe")
    parser.add_argument(
        "--ablation", type=Path, metavar="FILE", help="rows of an ablation (JSON Lines): its runs and sweeps"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the page and the plots that are there")


def _check_teacher(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "check-teacher",
        "TEACHER PAIRS",
        "judge whether a teacher is worth learning from on labelled pairs",
        "Calibrates its scores, prints AUC, F1 and how many pairs the dual threshold would drop at which threshold, "
        "and says in words what to make of it.",
    )
    parser.add_argument("teacher", metavar="TEACHER", help="folder or Hub name of a bi- or cross-encoder")
    parser.add_argument("pairs", metavar="PAIRS", help="file or Hub data set with columns text_a, text_b, label")
    parser.add_argument(
        "--validation", metavar="PAIRS", help="other pairs to calibrate on (default: the same, which flatters)"
    )
    parser.add_argument("--validation-split", metavar="SPLIT", help="split of --validation, if it is a data set")
    for name, tau in (("positive", "tau_pos"), ("negative", "tau_neg")):
        parser.add_argument(
            f"--{name}-threshold",
            type=number(float, 0, 1),
            default=0.5,
            metavar="P",
            help=f"{tau} of the planned training (0.5)",
        )
    parser.add_argument("--revision", help="branch, tag or commit of the teacher on the Hub")
    parser.add_argument("--teacher-cache-dir", metavar="FOLDER", help="where the teacher's scores are kept")
    parser.add_argument("--batch-size", type=count, default=64, metavar="N", help="texts or pairs at a time (64)")
    parser.add_argument("--device", help="cpu, cuda ... (default: a GPU if there is one)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code from the models' repositories")
    add_report(parser, "write everything as JSON; -: on the screen")
    student = parser.add_argument_group("comparison with the LLM as it is")
    student.add_argument("--student", metavar="NAME", help="folder, Hub name or GGUF file of a language model")
    student.add_argument("--prompt", choices=("en", "zh", *RERANKERS), default="en", help="its prompt (en)")
    student.add_argument("--instruction", help="replaces the prompt's instruction; '' leaves it out")
    student.add_argument("--max-length", type=number(int, 16), default=256, metavar="N", help="its tokens (256)")
    add_labelled(parser)
