"""What stands beside the weights of a merged model: what cards tell of the adapter, and what users wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..evaluation.plots import LOSSES_PLOT, SYSTEMS_PLOT
from ..evaluation.run_files import REPORT_FILE
from ..inference.loading import ADAPTER_CONFIG
from ..utils.json_files import read_json_object, write_json
from ..utils.provenance import CACHED_SNAPSHOT, shown_name
from .card_metadata import may_replace
from .files import ADAPTER_FOLDER, CARD_FILE, DOCUMENT_FILES, files_in, matches_any


def _base_told(merged: Path) -> str | None:
    path = merged / ADAPTER_FOLDER / ADAPTER_CONFIG
    return read_json_object(path).get("base_model_name_or_path") if path.is_file() else None


def keep_documents(adapter: Path, old: Path, new: Path) -> None:
    """Put into a merged model what a later card tells of the adapter, and what users have made of an earlier merge."""
    settings = read_json_object(adapter / ADAPTER_CONFIG)
    base = str(settings.get("base_model_name_or_path"))
    if cached := CACHED_SNAPSHOT.search(base):
        settings |= {"base_model_name_or_path": f"{cached[1]}/{cached[2]}", "revision": cached[3]}
    else:
        settings["base_model_name_or_path"] = shown_name(base)  # no path of this machine
    write_json(new / ADAPTER_FOLDER / ADAPTER_CONFIG, settings)
    if (adapter / REPORT_FILE).is_file():
        shutil.copyfile(adapter / REPORT_FILE, new / ADAPTER_FOLDER / REPORT_FILE)
    for path in files_in(old) if old.is_dir() else ():
        ours = str(path) in (SYSTEMS_PLOT, LOSSES_PLOT)
        if str(path) == CARD_FILE and may_replace((old / path).read_text(encoding="utf-8", errors="replace")):
            # The next one keeps what was added to its metadata, which tell of another base where that has changed.
            ours = _base_told(old) != settings["base_model_name_or_path"]
        if matches_any(path, DOCUMENT_FILES) and not ours:
            (new / path).parent.mkdir(exist_ok=True)
            shutil.copyfile(old / path, new / path)
