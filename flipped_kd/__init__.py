"""flipped_kd: teach a large language model to match text by learning from a small expert (arXiv 2507.05617)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names and where they live; imported on first use, so that `import flipped_kd` costs no torch.
_MODULES = {
    "training.config": ("FlippedDistillationConfig",),
    "training.trainer": ("FlippedDistillationTrainer",),
    "training.collator": ("TeacherScoringCollator",),
    "students.lora_encoder": ("LoraEncoder",),
    "losses.flipped": (
        "AnswerLoss",
        "DualThreshold",
        "FlippedDistillationLoss",
        "MarginAwareContrastiveLoss",
        "SimilarityDistillationLoss",
    ),
    "inference.matcher": ("FlippedMatcher",),
    "evaluation.metrics": ("PairMatching", "Retrieval"),
    "prompts.pair_prompt": ("PairPrompt",),
    "evaluation.match_score": ("MatchScore",),
    "inference.search_index": ("SearchIndex",),
    "publishing.publish": ("PublishError", "combine_adapters", "merge_adapter", "push_folder"),
    "teachers.bi_encoder": ("PlattCalibration", "load_teacher"),
    "data.loading": ("PairColumns", "load_pairs", "validate_pairs"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from .data.loading import PairColumns as PairColumns
    from .data.loading import load_pairs as load_pairs
    from .data.loading import validate_pairs as validate_pairs
    from .evaluation.match_score import MatchScore as MatchScore
    from .evaluation.metrics import PairMatching as PairMatching
    from .evaluation.metrics import Retrieval as Retrieval
    from .inference.matcher import FlippedMatcher as FlippedMatcher
    from .inference.search_index import SearchIndex as SearchIndex
    from .losses.flipped import AnswerLoss as AnswerLoss
    from .losses.flipped import DualThreshold as DualThreshold
    from .losses.flipped import FlippedDistillationLoss as FlippedDistillationLoss
    from .losses.flipped import MarginAwareContrastiveLoss as MarginAwareContrastiveLoss
    from .losses.flipped import SimilarityDistillationLoss as SimilarityDistillationLoss
    from .prompts.pair_prompt import PairPrompt as PairPrompt
    from .publishing.publish import PublishError as PublishError
    from .publishing.publish import combine_adapters as combine_adapters
    from .publishing.publish import merge_adapter as merge_adapter
    from .publishing.publish import push_folder as push_folder
    from .students.lora_encoder import LoraEncoder as LoraEncoder
    from .teachers.bi_encoder import PlattCalibration as PlattCalibration
    from .teachers.bi_encoder import load_teacher as load_teacher
    from .training.collator import TeacherScoringCollator as TeacherScoringCollator
    from .training.config import FlippedDistillationConfig as FlippedDistillationConfig
    from .training.trainer import FlippedDistillationTrainer as FlippedDistillationTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
