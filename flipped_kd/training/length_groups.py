"""Batches of like length, in an order that a resumed run draws again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices

EPOCHS_APART = 1_000_003


class EpochLengthGroupedSampler(LengthGroupedSampler):
    """Batches of like length in an order that seed and epoch decide.

    transformers' own draws it from the global random state, which another process has spent differently: a resumed run
    would see other batches, and the ranks of one run different orders from the second epoch on.

    Args:
        batch_size: rows of one step of one process.
        lengths: of every row of the data set.
        seed: of the order.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch; the data loader calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        # Far apart: else the second epoch of a seed would have the order of the next seed's first.
        self.generator.manual_seed(self.seed + EPOCHS_APART * self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=self.generator))
