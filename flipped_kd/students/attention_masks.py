"""Attention masks of one's own, as models take them."""

from __future__ import annotations

import torch
from torch import Tensor


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a query may look and the lowest number of `dtype` elsewhere: what both eager and sdpa attention take.

    No infinity, of which a row that sees nothing would make NaN.
    """
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        ~visible, torch.finfo(dtype).min
    )
