"""What the verbs of `flipped-kd` have in common: the parser's class, and groups of options."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..utils.choices import SCORE_KINDS

PROG = "flipped-kd"
TABLES = "JSON Lines (.jsonl), CSV, TSV or Parquet, by the ending of its name"


class UsageError(ValueError):
    """Wrong options; the message says which."""


class Paragraphs(argparse.HelpFormatter):
    """Fills the paragraphs of descriptions; those with indented lines stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        fill = super()._fill_text
        return "\n\n".join(part if "\n  " in part else fill(part, width, indent) for part in paragraphs)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", Paragraphs)
        # No abbreviations: a mistyped option must not pass for another one.
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Refuse what is unknown here, where the verb's own options are known, and say what is like it."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._suggestion(unknown[0])}")
        return found, unknown

    def _suggestion(self, unknown: str) -> str:
        written = unknown.partition("=")[0].replace("_", "-")
        near = difflib.get_close_matches(written, list(self._option_string_actions), n=1)
        return f"; did you mean {near[0]}?" if near and written.startswith("-") else ""

    def error(self, message: str) -> NoReturn:
        """Raise what `main` prints."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def add_common(parser: argparse.ArgumentParser, default: Any = False) -> None:
    """The options that every verb takes."""
    group = parser.add_argument_group("messages")
    group.add_argument("--debug", action="store_true", default=default, help="show where an error comes from")
    group.add_argument(
        "--quiet", action="store_true", default=default, help="no progress, no log but warnings and errors"
    )


def add_verb(verbs: Any, name: str, usage: str, summary: str, details: str) -> Parser:
    """A parser for one verb."""
    added: Parser = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n{details}".rstrip(),
        usage=f"{PROG} {name} {usage} [options]",
    )
    add_common(added, default=argparse.SUPPRESS)
    return added


def number(kind: Callable[[str], Any], low: float, high: float = float("inf")) -> Callable[[str], Any]:
    """A type for argparse: a number in [low, high]."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            limit = f"from {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
            name = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"{text!r} is no {name} {limit}")
        return value

    return read


count = number(int, 1)


def threshold(text: str) -> str | float:
    """A probability, or "tuned"."""
    return text if text == "tuned" else number(float, 0, 1)(text)


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL and how it is loaded."""
    parser.add_argument("model", metavar="MODEL", help="folder or Hub name of an adapter or a merged model")
    group = parser.add_argument_group("model")
    group.add_argument("--revision", help="branch, tag or commit of MODEL on the Hub")
    group.add_argument("--base-model", metavar="NAME", help="folder or Hub name of the base, if it has moved")
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: a GPU if there is one)")
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="auto: float32 on a CPU, bfloat16 on a GPU that has it",
    )
    group.add_argument("--batch-size", type=count, default=32, metavar="N", help="pairs or texts at a time (32)")
    group.add_argument("--cache-dir", metavar="FOLDER", help="where downloads are kept")
    group.add_argument("--trust-remote-code", action="store_true", help="run model code from the base's repository")


def add_job(parser: argparse.ArgumentParser, part_rows: int, more: str = "") -> None:
    """Where the rows go, and how an interrupted command goes on."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o", "--output", default="-", metavar="FILE", help=f"{TABLES}{more}; - (default): JSON Lines on the screen"
    )
    group.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    group.add_argument("--restart", action="store_true", help="drop the unfinished work in FILE.partial")
    group.add_argument(
        "--part-rows",
        type=count,
        default=part_rows,
        metavar="N",
        help=f"rows of a part, which is what an interruption can lose ({part_rows})",
    )


def add_report(parser: argparse.ArgumentParser, meaning: str) -> None:
    """The file that a report goes to."""
    parser.add_argument("-o", "--output", metavar="FILE", help=meaning)
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")


def add_columns(parser: argparse.ArgumentParser, *roles: str) -> Any:
    """Names of the input's columns, one for each role; returns the group."""
    group = parser.add_argument_group("input")
    for role in roles:
        name = role.replace("_", "-")
        group.add_argument(f"--{name}-column", default=role, metavar="NAME", help=f"column of {role} ({role})")
    return group


def add_skip(group: Any) -> None:
    """Whether bad rows are left out."""
    group.add_argument("--skip-bad-rows", action="store_true", help="leave out rows without proper texts or label")


def add_labelled(parser: argparse.ArgumentParser) -> None:
    """How labelled pairs are read."""
    group = add_columns(parser, "text_a", "text_b", "label")
    group.add_argument("--split", help="split of a data set, such as test or 'train[:1000]'")
    group.add_argument("--label-threshold", type=float, metavar="X", help="labels are scores: 1 from X on")
    group.add_argument("--max-pairs", type=count, metavar="N", help="a random subset of N pairs")
    add_skip(group)


def add_score(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Which of the model's scores is meant."""
    parser.add_argument("--score", choices=SCORE_KINDS, help=f"{meaning} (default: what the model was saved with)")
