"""flipped_kd: teach a large language model to match text by learning from a small expert (arXiv 2507.05617)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names and where they live; imported on first use, so that `import flipped_kd` costs no torch.
_MODULES = {
    "config": ("FlippedDistillationConfig",),
    "trainer": ("FlippedDistillationTrainer",),
    "collator": ("TeacherScoringCollator",),
    "encoder": ("LoraEncoder",),
    "losses": (
        "AnswerLoss",
        "DualThreshold",
        "FlippedDistillationLoss",
        "MarginAwareContrastiveLoss",
        "SimilarityDistillationLoss",
    ),
    "matcher": ("FlippedMatcher",),
    "metrics": ("PairMatching", "Retrieval"),
    "prompts": ("PairPrompt",),
    "scoring": ("MatchScore",),
    "search_index": ("SearchIndex",),
    "publish": ("PublishError", "combine_adapters", "merge_adapter", "push_folder"),
    "teacher": ("PlattCalibration", "load_teacher"),
    "data": ("PairColumns", "load_pairs", "validate_pairs"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from .collator import TeacherScoringCollator as TeacherScoringCollator
    from .config import FlippedDistillationConfig as FlippedDistillationConfig
    from .data import PairColumns as PairColumns
    from .data import load_pairs as load_pairs
    from .data import validate_pairs as validate_pairs
    from .encoder import LoraEncoder as LoraEncoder
    from .losses import AnswerLoss as AnswerLoss
    from .losses import DualThreshold as DualThreshold
    from .losses import FlippedDistillationLoss as FlippedDistillationLoss
    from .losses import MarginAwareContrastiveLoss as MarginAwareContrastiveLoss
    from .losses import SimilarityDistillationLoss as SimilarityDistillationLoss
    from .matcher import FlippedMatcher as FlippedMatcher
    from .metrics import PairMatching as PairMatching
    from .metrics import Retrieval as Retrieval
    from .prompts import PairPrompt as PairPrompt
    from .publish import PublishError as PublishError
    from .publish import combine_adapters as combine_adapters
    from .publish import merge_adapter as merge_adapter
    from .publish import push_folder as push_folder
    from .scoring import MatchScore as MatchScore
    from .search_index import SearchIndex as SearchIndex
    from .teacher import PlattCalibration as PlattCalibration
    from .teacher import load_teacher as load_teacher
    from .trainer import FlippedDistillationTrainer as FlippedDistillationTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
