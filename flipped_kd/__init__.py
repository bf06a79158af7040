"""flipped_kd: teach a large language model to match text by learning from a small expert (arXiv 2507.05617)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .utils.version import __version__ as __version__

# Public names and where they live; imported on first use, so that `import flipped_kd` costs no torch.
_MODULES = {
    "data.loading": ("load_pairs",),
    "data.validation": ("PairColumns", "validate_pairs"),
    "prompts.pair_prompt": ("PairPrompt",),
    "losses.flipped": ("FlippedDistillationLoss",),
    "losses.answer": ("AnswerLoss",),
    "losses.similarity": ("SimilarityDistillationLoss",),
    "losses.contrastive": ("MarginAwareContrastiveLoss",),
    "losses.dual_threshold": ("DualThreshold",),
    "evaluation.evaluate_metrics": ("PairMatching", "Retrieval"),
    "evaluation.match_score": ("MatchScore",),
    "students.lora_encoder": ("LoraEncoder",),
    "inference.matcher": ("FlippedMatcher",),
    "inference.search_index": ("SearchIndex",),
    "teachers.base": ("Teacher",),
    "teachers.loading": ("load_teacher",),
    "teachers.calibration": ("PlattCalibration",),
    "publishing.errors": ("PublishError",),
    "publishing.push": ("push_folder",),
    "publishing.merge": ("merge_adapter",),
    "publishing.combine": ("combine_adapters",),
    "training.config": ("FlippedDistillationConfig",),
    "training.trainer": ("FlippedDistillationTrainer",),
    "training.collator": ("TeacherScoringCollator",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from .data.loading import load_pairs as load_pairs
    from .data.validation import PairColumns as PairColumns
    from .data.validation import validate_pairs as validate_pairs
    from .evaluation.evaluate_metrics import PairMatching as PairMatching
    from .evaluation.evaluate_metrics import Retrieval as Retrieval
    from .evaluation.match_score import MatchScore as MatchScore
    from .inference.matcher import FlippedMatcher as FlippedMatcher
    from .inference.search_index import SearchIndex as SearchIndex
    from .losses.answer import AnswerLoss as AnswerLoss
    from .losses.contrastive import MarginAwareContrastiveLoss as MarginAwareContrastiveLoss
    from .losses.dual_threshold import DualThreshold as DualThreshold
    from .losses.flipped import FlippedDistillationLoss as FlippedDistillationLoss
    from .losses.similarity import SimilarityDistillationLoss as SimilarityDistillationLoss
    from .prompts.pair_prompt import PairPrompt as PairPrompt
    from .publishing.combine import combine_adapters as combine_adapters
    from .publishing.errors import PublishError as PublishError
    from .publishing.merge import merge_adapter as merge_adapter
    from .publishing.push import push_folder as push_folder
    from .students.lora_encoder import LoraEncoder as LoraEncoder
    from .teachers.base import Teacher as Teacher
    from .teachers.calibration import PlattCalibration as PlattCalibration
    from .teachers.loading import load_teacher as load_teacher
    from .training.collator import TeacherScoringCollator as TeacherScoringCollator
    from .training.config import FlippedDistillationConfig as FlippedDistillationConfig
    from .training.trainer import FlippedDistillationTrainer as FlippedDistillationTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
