"""The plan of an ablation: a YAML file of pair sets, runs and seeds, read into a list of training runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...training.config import FlippedDistillationConfig
from ...utils.checks import require_integer
from ..arguments import DataArguments, StudentArguments
from ..parsing import field_types, parse_settings
from ..run_identity import NOT_LEARNED
from ..yaml_settings import plain, read_yaml, typed, written

CLASSES = (StudentArguments, DataArguments, FlippedDistillationConfig)
TYPES = {name: kind for cls in CLASSES for name, kind in field_types(cls).items()} | {"peer": str}
TOP_KEYS = {"output_dir", "seed", "base", "sets", "groups"}
GROUP_KEYS = {"title", "sets", "seeds", "reference", "runs", "sweeps"}
# Settings that name files or folders, relative to the root.
PATHS = ("train_file", "validation_file", "test_file", "questions_file", "unlabelled_file", "teacher", "student")
# Settings that an ablation decides itself.
OWN = ("output_dir", "seed", "seeds", "teacher_cache_dir")
# Settings of transformers that make no other run: what is written when, and where it computes (rows tell the device).
NOT_DECIDING = NOT_LEARNED | {"use_cpu"}


@dataclass(frozen=True)
class Job:
    """One training run of one pair set with one seed.

    Attributes:
        set: name of the pair set.
        name: name of the run, such as "full" or "margin=0.04".
        seed: of everything random in it.
        settings: all settings that are not defaults, paths resolved.
        changes: those of the run itself, which make it what it is.
        peer: name of another trainer that makes this run, None for ours.
        looks_before: score the untrained student too. It is the same for every seed: the first seed's runs do.
    """

    set: str
    name: str
    seed: int
    settings: Mapping[str, Any]
    changes: Mapping[str, Any]
    peer: str | None = None
    looks_before: bool = False

    @property
    def key(self) -> tuple[str, str, int]:
        """What a finished row is known by."""
        return self.set, self.name, self.seed

    @property
    def resolved(self) -> dict[str, Any]:
        """The settings with our defaults, as JSON values: what a row is made of, whatever the defaults become.

        Of names of files and models the last part only: rows made elsewhere count here, whether the files are or not.
        """
        settings = {**_defaults(), **self.settings, "peer": self.peer}
        if settings["encoder_modules"] == ["all"]:
            settings["encoder_modules"] = None  # as FlippedDistillationConfig keeps it
        shown = {name: Path(value).name if value and name in PATHS else value for name, value in settings.items()}
        return dict(json.loads(json.dumps(shown, default=str)))


@dataclass(frozen=True)
class Group:
    """Runs that are shown in one table and compared with one of them.

    Attributes:
        title: heading.
        sets: names of pair sets, a table each.
        seeds: of each run.
        runs: names of the runs, in the order of the rows.
        reference: the run that the others are compared with.
        sweeps: values of each swept setting, by its name.
    """

    title: str
    sets: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    reference: str
    sweeps: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """All of an ablation."""

    output_dir: Path
    jobs: tuple[Job, ...]
    groups: tuple[Group, ...]


def read_plan(path: Path, root: Path | None = None, output_dir: Path | None = None) -> Plan:
    """Read a plan: seeds outermost, so that an interrupted ablation holds whole comparisons.

    A file has `base` (settings of all runs, as in a recipe's YAML), `sets` (by name, the settings that name data,
    teacher and student) and `groups`, each with `sets`, `seeds` (how many, counted from `seed`), `runs` (by name, the
    settings that differ; `peer` names another trainer) and `sweeps` (a setting and its values: a run each, named
    "setting=value"). `reference` (default "full") is the run that others are compared with.

    Args:
        path: the YAML file.
        root: folder that relative paths of data and models start from; by default the current one.
        output_dir: replaces the file's.

    Returns:
        The plan, every setting checked.

    Raises:
        ValueError: an unknown key, set or setting, or a bad value; the message names it and where it stands.
    """
    content = _mapping(_read(path), str(path))
    _known(content, TOP_KEYS, str(path))
    sets = {
        str(name): _settings(entry, f"{path}: sets")
        for name, entry in _mapping(content.get("sets") or {}, f"{path}: sets").items()
    }
    base = _settings(content.get("base"), f"{path}: base")
    first = _whole(content.get("seed", 0), f"{path}: seed", 0, "seeds are counted from it.")
    jobs: dict[tuple[str, str, int], Job] = {}
    groups = []
    for number, entry in enumerate(_list(content.get("groups") or [], f"{path}: groups")):
        where = f"{path}: group {number + 1}"
        _known(_mapping(entry, where), GROUP_KEYS, where)
        named = _mapping(entry.get("runs") or {}, where)
        runs = {str(name): _settings(changes, where) for name, changes in named.items()}
        sweeps = {
            name: [_setting(name, value) for value in _list(values, f"{where}: {name}")]
            for name, values in _mapping(entry.get("sweeps") or {}, where).items()
        }
        runs |= {f"{name}={value}": {name: value} for name, values in sweeps.items() for value in values}
        used = [written(name) for name in _list(entry.get("sets") or [*sets], f"{where}: sets")]
        for name in used:
            if name not in sets:
                raise ValueError(f"{where}: no set is named {name!r}; there are {sorted(sets)}.")
        seeds = _whole(entry.get("seeds", 1), f"{where}: seeds", 1, "at least one is needed.")
        for seed in range(first, first + seeds):
            for name in used:
                for run, changes in runs.items():
                    job = _job(name, run, seed, base, sets[name], changes, root, where)
                    job = dataclasses.replace(job, looks_before=seed == first)
                    known = jobs.setdefault(job.key, job)
                    if known.resolved != job.resolved:
                        raise ValueError(
                            f"{where}: run {run!r} of {name} stands in another group with other settings."
                        )
        reference = written(entry.get("reference", "full" if "full" in runs else next(iter(runs), "")))
        if runs and reference not in runs:
            raise ValueError(f"{where}: reference: no run is named {reference!r}; there are {list(runs)}.")
        groups.append(
            Group(
                written(entry.get("title", f"Group {number + 1}")),
                tuple(used),
                tuple(range(first, first + seeds)),
                tuple(runs),
                reference,
                sweeps,
            )
        )
    if not jobs:
        raise ValueError(f"{path} names no runs: give groups with sets and runs.")
    ordered = sorted(jobs.values(), key=lambda job: job.seed)  # stable: groups, sets and runs keep their order
    for job in {(job.set, job.name): job for job in ordered}.values():
        settings_of(job, Path("-"), Path("-"))  # bad values are refused before anything is trained
    folder = output_dir or Path(written(content.get("output_dir", "outputs/ablation")))
    return Plan(folder, tuple(ordered), tuple(groups))


def settings_of(
    job: Job, folder: Path, cache: Path
) -> tuple[StudentArguments, DataArguments, FlippedDistillationConfig]:
    """The settings of one run that writes to `folder`, checked as a recipe's (ValueError)."""
    own = {"output_dir": str(folder), "teacher_cache_dir": str(cache), "seed": job.seed}
    try:
        student, data, config = parse_settings(CLASSES, [], dict(job.settings) | own)
    except (ValueError, SystemExit) as error:
        raise ValueError(f"run {job.name!r} of {job.set}: {error}") from error
    return student, data, config


def _defaults() -> dict[str, Any]:
    """What our settings are where nobody gives them, those of transformers that we set otherwise among them."""
    found: dict[str, Any] = {}
    for settings in CLASSES:
        for entry in dataclasses.fields(settings):
            if entry.name in vars(settings).get("__annotations__", {}) and entry.name not in OWN:
                factory = entry.default_factory
                found[entry.name] = entry.default if factory is dataclasses.MISSING else factory()
    return found


def inherited_defaults() -> dict[str, Any]:
    """What decides a run among transformers' own settings, where nobody gives it: a row tells these only if given."""
    own = _defaults()
    return {
        entry.name: entry.default
        for entry in dataclasses.fields(FlippedDistillationConfig)
        if entry.name not in own and entry.name not in NOT_DECIDING and entry.default is not dataclasses.MISSING
    }


def _job(
    set_name: str,
    run: str,
    seed: int,
    base: Mapping[str, Any],
    of_set: Mapping[str, Any],
    changes: Mapping[str, Any],
    root: Path | None,
    where: str,
) -> Job:
    changes = dict(changes)
    peer = changes.pop("peer", None)
    settings = {**base, **of_set, **changes}
    for name in OWN:
        if name in settings:
            raise ValueError(f"{where}: {name} is not a setting of a run: it is the ablation's own.")
    for name in PATHS:
        value = settings.get(name)
        if root is not None and isinstance(value, str) and (root / value).exists():
            settings[name] = str(root / value)
    return Job(set_name, run, seed, settings, changes, peer)


def _read(path: Path) -> Any:
    try:
        return read_yaml(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file.") from error


def _settings(value: Any, where: str) -> dict[str, Any]:
    """Settings by name, each of the type of its field."""
    return {name: _setting(name, entry) for name, entry in _mapping(value or {}, where).items()}


def _setting(name: str, value: Any) -> Any:
    return typed(value, TYPES.get(name, Any))  # an unknown one is refused with all others


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected 'key: value' lines, found {plain(value)!r}.")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: give a list, as in [a, b]; found {plain(value)!r}.")
    return value


def _whole(value: Any, name: str, least: int, why: str) -> int:
    require_integer(name, plain(value), least, why)
    return int(plain(value))


def _known(found: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(found.keys() - known)
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; there are {sorted(known)}.")
