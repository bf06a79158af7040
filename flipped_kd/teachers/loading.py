"""Loading a teacher of either kind."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from .base import Teacher
from .bi_encoder import BiEncoderTeacher
from .cross_encoder import CrossEncoderTeacher
from .files import KIND_REMEDY, KIND_RULE, check_files, model_class_of, name_of_model, resolve_model


def load_teacher(
    teacher: str | os.PathLike[str] | SentenceTransformer | CrossEncoder | Teacher,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
) -> Teacher:
    """Load a teacher in float32 and evaluation mode, and find out what kind it is.

    A folder's kind is read from its files, as sentence-transformers does: `config_sentence_transformers.json` names
    the model type where `modules.json` exists; without it a ...ForSequenceClassification architecture is a
    cross-encoder, and a plain encoder becomes a mean-pooled bi-encoder, with a warning. Weights are read from
    safetensors only, never from pickles.

    Args:
        teacher: a folder, a Hub id ("organisation/name"), or a loaded model, which is put in evaluation mode and keeps
            its dtype; or a `Teacher` of your own, which is returned as it is.
        revision: branch, tag or commit for a Hub id.
        device: where to run; by default sentence-transformers' choice, or where a loaded model is.
        trust_remote_code: run Python code from the model's repository. Only for repositories you trust.

    Returns:
        The teacher.

    Raises:
        TypeError: if `teacher` is neither a name nor a bi- or cross-encoder.
        ValueError: if the model cannot be found, is of no usable kind, has only pickled weights or broken ones, has
            several labels, or gives no vector; also for a revision of something that is not on the Hub.

    Examples:
        `teacher_folder` holds a model of sentence-transformers.

        >>> teacher = load_teacher(teacher_folder, device="cpu")
        >>> teacher.kind, teacher.has_vectors
        ('bi_encoder', True)
        >>> vectors = teacher.compute(["where is my card", "a refund"], batch_size=2)
        >>> vectors.shape == (2, teacher.dim)
        True
    """
    if isinstance(teacher, os.PathLike):
        teacher = Path(teacher)
    if revision is not None and (not isinstance(teacher, str) or Path(teacher).is_dir()):
        shown = repr(str(teacher)) if isinstance(teacher, str | Path) else f"a loaded {type(teacher).__name__}"
        raise ValueError(f"revision={revision!r} can only be given with a Hub id, not with {shown}: leave it out.")
    if isinstance(teacher, Teacher):
        return teacher
    if isinstance(teacher, SentenceTransformer | CrossEncoder):
        name, found_revision = name_of_model(teacher), None
        model = teacher if device is None else teacher.to(device)
    elif isinstance(teacher, str | Path):
        name, found_revision, folder = resolve_model(teacher, revision, trust_remote_code)
        check_files(folder, name)
        model_class = model_class_of(folder, name)
        try:
            model = model_class(
                str(folder),
                device=None if device is None else str(device),
                trust_remote_code=trust_remote_code,
                # All is in the folder; only code that one trusts may lie in yet another repository.
                local_files_only=not trust_remote_code,
                model_kwargs={"dtype": torch.float32, "use_safetensors": True},
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
            raise ValueError(
                f"Teacher {name!r} could not be loaded as a {model_class.__name__}: {error}. {KIND_RULE}; "
                f"{KIND_REMEDY}."
            ) from error
        model.float()
    else:
        raise TypeError(
            f"Teacher {teacher!r} of type {type(teacher).__name__} is no teacher. {KIND_RULE}; {KIND_REMEDY}."
        )
    model.eval()
    if isinstance(model, CrossEncoder):
        return CrossEncoderTeacher(model, id=name, revision=found_revision)
    return BiEncoderTeacher(model, id=name, revision=found_revision)
