"""The `flipped-kd` command: reads its arguments, runs one verb, and turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, TextIO

from ..utils.redaction import redact
from ..utils.screen import Legible, unfailing_screen
from .arguments import PROG, UsageError
from .parser import build_parser

# Where each verb's function is; imported only when it is needed.
VERBS = {
    verb: f"commands.{verb.replace('-', '_')}"
    for verb in (
        *("train", "evaluate", "calibrate", "predict", "encode", "rank", "search", "serve"),
        *("merge", "push", "card", "report", "check-teacher"),
    )
}
DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: verb and options; by default the process's own.

    Returns:
        Exit code: 0 done, 1 failed at work, 2 wrong usage or bad input, 130 interrupted.
    """
    results = sys.stdout
    with _standard_error(), unfailing_screen():
        return _main([_with_home(argument) for argument in (sys.argv[1:] if argv is None else argv)], results)


@contextlib.contextmanager
def _standard_error() -> Iterator[None]:
    """Where a process was started without a standard error, as by ``2>&-``, one that shows nothing.

    Else print would write messages to standard output, among the results, and libraries would ask None whether it is
    a terminal.
    """
    if sys.stderr is not None:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def _with_home(argument: str) -> str:
    """The argument; of --output=~/out.csv shells leave the tilde alone, and a folder of that name would be made."""
    option, _, value = argument.partition("=")
    return f"{option}={os.path.expanduser(value)}" if option[:2] == "--" and value[:2] == "~/" else argument


def _main(arguments: list[str], results: TextIO | None) -> int:
    debug, resumes = "--debug" in arguments, False
    try:
        options = _parse(arguments)
        debug = options.debug
        resumes = _resumes(options)
        # A result that cannot be shown is a failure; what else is shown is not.
        options.screen = sys.stdout
        options.stdout = sys.stderr if results is None else Legible(results)
        with _messages(options):
            _run(options)
    except SystemExit as stop:  # --help and --version
        return stop.code if isinstance(stop.code, int) else DONE
    except KeyboardInterrupt:
        _complain("interrupted" + ("; the same command goes on with what is finished" if resumes else ""), "")
        return INTERRUPTED
    except BrokenPipeError as error:
        if error.filename:
            _complain(_in_words(error, debug), "error: ")
        return FAILED  # without a word where the reader of standard output has seen enough
    except Exception as error:
        if debug:
            print(redact(traceback.format_exc()), file=sys.stderr, end="")
        _complain(_in_words(error, debug), "error: ")
        return BAD_INPUT if isinstance(error, ValueError) and not _is_network_failure(error) else FAILED
    return DONE


def _resumes(options: Namespace) -> bool:
    """Whether a command that is interrupted leaves something that the same one goes on with."""
    if options.verb in ("train", "push"):
        return True
    return options.verb in ("predict", "encode", "rank", "search") and options.output != "-"


def _is_network_failure(error: Exception) -> bool:
    """Whether a name could not be looked up, as against a wrong one."""
    if "huggingface_hub" not in sys.modules:  # nothing was asked; the import would cost more than --help takes
        return False
    from ..utils.hub_download import is_network_failure

    return is_network_failure(error)


def _parse(arguments: Sequence[str]) -> Namespace:
    parser = build_parser()
    verb = next((place for place, argument in enumerate(arguments) if not argument.startswith("-")), len(arguments))
    if arguments[verb : verb + 1] != ["train"]:
        return parser.parse_args(arguments)
    # What follows are settings of training, which need torch to be understood.
    options = parser.parse_args(arguments[: verb + 1])
    options.settings = list(arguments[verb + 1 :])
    return options


def _run(options: Namespace) -> None:
    function = getattr(import_module(f".{VERBS[options.verb]}", __package__), options.verb.replace("-", "_"))
    alone = options.verb not in ("train", "predict", "encode", "rank")
    if alone and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"{options.verb} runs in one process: start it without accelerate launch")
    # Results alone go to standard output, whatever the libraries print.
    try:
        with contextlib.redirect_stdout(sys.stderr) if options.verb != "train" else contextlib.nullcontext():
            function(options)
    finally:
        _leave_process_group()


def _leave_process_group() -> None:
    """Close what `accelerate launch` has opened: gloo may abort at exit otherwise."""
    if "WORLD_SIZE" in os.environ and "torch.distributed" in sys.modules:
        import torch.distributed

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _messages(options: Namespace) -> Iterator[None]:
    """Our log and all warnings on standard error, a line each, without tokens."""
    handler = _Lines(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{PROG}: %(message)s"))
    logger = logging.getLogger("flipped_kd")
    before = logger.level, logger.propagate
    logger.setLevel(logging.WARNING if options.quiet else logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            if not options.debug:  # what libraries will rename one day is not for those who use the command
                for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
                    warnings.simplefilter("ignore", category)
            warnings.showwarning = _show_warning
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class _Lines(logging.StreamHandler[TextIO]):
    """A log without tokens."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    _complain(str(message), "warning: ")


def _complain(message: str, kind: str) -> None:
    print(f"{PROG}: {kind}{' '.join(redact(message).split())}", file=sys.stderr)


def _in_words(error: Exception, debug: bool) -> str:
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({error}): give a smaller --batch-size"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, ValueError | OSError | RuntimeError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}" + ("" if debug else " (--debug shows where)")
