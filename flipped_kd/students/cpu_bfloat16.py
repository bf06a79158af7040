"""bfloat16 on CPUs that do not multiply it: products are taken in float32 and rounded, as the units of others do.

torch emulates such products, and a training step takes 20 times as long as in float32; here it takes 1.25 times as
long (benchmarks/NOTES.md). A product of bfloat16 numbers is exact in float32, where
the units of other CPUs add them up, too; so the results differ by the order of the sum alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_map

from ..utils.devices import cpu_has_bfloat16

_aten = torch.ops.aten
# How many of the outputs have the inputs' dtype: attention's second one is in float32 always. In inference mode the
# first three are not taken apart into the others.
PRODUCTS = {
    _aten.linear.default: 1,
    _aten.matmul.default: 1,
    _aten.scaled_dot_product_attention.default: 1,
    _aten.mm.default: 1,
    _aten.addmm.default: 1,
    _aten.bmm.default: 1,
    _aten.baddbmm.default: 1,
    _aten._scaled_dot_product_flash_attention_for_cpu.default: 1,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: 3,
}


def fast_bfloat16(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """Within it, products of bfloat16 on this CPU are as fast as those of float32, backward ones too.

    Nothing changes on a CPU that multiplies bfloat16, on other devices, for other dtypes, and in compiled code.

    Args:
        dtype: that products are taken in. Where it is bfloat16 every operation costs some microseconds more.
        device: where they are taken.
    """
    needless = dtype != torch.bfloat16 or device.type != "cpu" or torch.compiler.is_compiling()
    if needless or cpu_has_bfloat16():
        return nullcontext()
    nested = any(isinstance(mode, _Float32Products) for mode in _get_current_dispatch_mode_stack())
    return nullcontext() if nested else _Float32Products()


class _Float32Products(TorchDispatchMode):
    """Takes the operations of PRODUCTS in float32. A mode, because autograd's own products have no other hook."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        outputs = PRODUCTS.get(func)
        if outputs is None or not _is_half(args[0]):
            return func(*args, **kwargs)
        result = func(*tree_map(_widened, args), **tree_map(_widened, dict(kwargs)))
        if isinstance(result, Tensor):
            return result.bfloat16()
        return *(output.bfloat16() for output in result[:outputs]), *result[outputs:]

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """torch.compile would else leave every model alone that is called inside."""
        return True


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16 and value.device.type == "cpu"


def _widened(value: Any) -> Any:
    return value.float() if _is_half(value) else value
