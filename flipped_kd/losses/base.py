"""What every objective that aligns the student's similarities with the teacher's is given, and must give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..utils.checks import check_same_shape


def own_pairs(values: Tensor) -> Tensor:
    """Of values for every two texts (N, N), or for the pairs alone (N,): those of the pairs, (N,)."""
    return values.diagonal() if values.ndim == 2 else values


@dataclass(frozen=True)
class Compared:
    """The representations of a batch beside what the teacher says of them.

    Attributes:
        student: the student's cosines, (N, N) for all texts a with all texts b, or (N,) for the pairs alone.
        teacher: the teacher's T, same shape.
        kept: which entries take part, same shape, boolean.
        positive: which of them match, same shape, boolean.
        vectors_a: (N, D) unit representations of the first texts.
        vectors_b: (N, D) of the second.

    Raises:
        ValueError: the shapes of the first four differ.
    """

    student: Tensor
    teacher: Tensor
    kept: Tensor
    positive: Tensor
    vectors_a: Tensor
    vectors_b: Tensor

    def __post_init__(self) -> None:
        check_same_shape(student=self.student, teacher=self.teacher, kept=self.kept, positive=self.positive)

    def own_pairs(self) -> Compared:
        """The pairs of the data set alone, all fields (N,): the diagonal of a matrix."""
        student, teacher, kept, positive = map(own_pairs, (self.student, self.teacher, self.kept, self.positive))
        return Compared(student, teacher, kept, positive, self.vectors_a, self.vectors_b)


class SimilarityObjective(nn.Module, ABC):
    """An objective in the place of L_dist. A subclass, registered in `build.OBJECTIVES`, is all it takes.

    Attributes:
        citation: BibTeX of the source, which the model card prints; "" for none.
    """

    citation: str = ""

    @abstractmethod
    def align(self, compared: Compared) -> Tensor:
        """The loss, a scalar with gradient; 0, still with a graph, where there is nothing to compare."""

    @abstractmethod
    def get_config_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values, by argument name."""
