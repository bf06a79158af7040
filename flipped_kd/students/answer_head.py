"""The answer: logits at one position a row, in full precision."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn

from ..utils.angles import wide
from .probing import input_device, is_sharded, probe_rows, same_logits, unwrapped

logger = logging.getLogger(__name__)
# Numbers of the output layer that are copied to full precision at a time: 128 MB.
COPIED_NUMBERS = 1 << 25


def accepts_logits_to_keep(model: nn.Module) -> bool:
    """Whether the causal model (unwrapped of PEFT) can compute the logits of chosen positions only, row by row.

    Models of transformers can that have the parameter. Of code that came with a model it is tried: it may take one
    list of positions for all rows.
    """
    base = unwrapped(model)
    if "logits_to_keep" not in inspect.signature(base.forward).parameters:
        return False
    if type(base).__module__.startswith("transformers.") or is_sharded(model):
        return True
    positions = torch.tensor([[0, 2], [1, 3]], device=input_device(model))
    try:
        found = probe_rows(model, logits_to_keep=positions).logits
    except ValueError as error:
        logger.debug("all logits are computed: %s", error)
        return False
    return same_logits(found, probe_rows(model).logits[torch.arange(2)[:, None], positions])


def position_logits(model: nn.Module, inputs: dict[str, Any], positions: Tensor, keep: bool) -> Tensor:
    """Logits at chosen positions of each row: `positions` (R,) or (R, k) -> (R k, V). With `keep` no others are made.

    `model` is called as it is given (a DDP or FSDP wrapper included), never unwrapped: its hooks synchronise
    gradients. With `past_key_values` among the inputs it goes on from that cache.
    """
    use_cache = "past_key_values" in inputs
    positions = positions.view(len(positions), -1)
    if keep:
        return model(**inputs, use_cache=use_cache, logits_to_keep=positions).logits.flatten(0, 1)
    logits = model(**inputs, use_cache=use_cache).logits
    return logits[torch.arange(len(positions), device=positions.device)[:, None], positions].flatten(0, 1)


def packed_logits(model: nn.Module, inputs: dict[str, Any], batch: Mapping[str, Tensor], keep: bool) -> Tensor:
    """Logits after each pair, (B, V), of rows that hold several pairs (`training.packing`).

    Args:
        model: called as it is given, as in `position_logits`.
        inputs: what it takes.
        batch: `pair_row`, `pair_slot`, `answer_position` (B,) and `read_positions` (R, k).
        keep: no other position's logits are computed.
    """
    if keep:
        logits = model(**inputs, use_cache=False, logits_to_keep=batch["read_positions"]).logits
        return logits[batch["pair_row"], batch["pair_slot"]]
    return model(**inputs, use_cache=False).logits[batch["pair_row"], batch["answer_position"]]


def log_odds(logits: Tensor, answer_ids: tuple[int, int]) -> Tensor:
    """logit(yes) - logit(no) (B,) in at least float32, from the logits (B, V) at the answer position.

    Args:
        logits: of the whole vocabulary; or (B, 2) of the two answers alone, as `answer_rows` gives them.
        answer_ids: token ids of no and yes.
    """
    no_id, yes_id = (0, 1) if logits.shape[-1] == 2 else answer_ids
    return wide(logits[:, yes_id]) - wide(logits[:, no_id])


def keep_head_precision(model: nn.Module) -> None:
    """Let the output layer compute in float32 (or wider) under autocast and with half-precision weights.

    bfloat16 logits of size 10 are multiples of 1/16, so that whole ranges of pairs would get one and the same
    log-odds. A head in half precision is computed a second time in full precision, at the positions that are read.
    The layers inside a head that PEFT has wrapped are treated the same.
    """
    for part in unwrapped(model).get_output_embeddings().modules():
        plain = type(part) is nn.Linear or isinstance(part, TrainableTokensWrapper)
        if plain and _precise_output not in part._forward_hooks.values():
            part.register_forward_pre_hook(_leave_autocast)
            part.register_forward_hook(_precise_output)
            part.register_forward_hook(_return_to_autocast, always_call=True)


def _leave_autocast(part: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Weights in float32 need no second product; autocast would cast the whole vocabulary for the first."""
    device = inputs[0].device.type
    if part.weight.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        return None
    part.suspended_autocast = torch.autocast(device, enabled=False)
    part.suspended_autocast.__enter__()
    return (wide(inputs[0]), *inputs[1:])


def _return_to_autocast(part: Any, _inputs: tuple[Tensor, ...], _output: Tensor) -> None:
    suspended = part.__dict__.pop("suspended_autocast", None)
    if suspended is not None:
        suspended.__exit__(None, None, None)


def _precise_output(part: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    if output.dtype not in (torch.bfloat16, torch.float16):
        return None
    bias = getattr(part, "bias", None)
    with torch.autocast(output.device.type, enabled=False):
        # Frozen weights are copied in parts; a gradient of their own wants them whole.
        product = nn.functional.linear if part.weight.requires_grad else _WideProduct.apply
        logits = product(wide(inputs[0]), wide(part.weight) if part.weight.requires_grad else part.weight)
        return logits if bias is None else logits + wide(bias)


class _WideProduct(torch.autograd.Function):
    """`linear(x, wide(weight))` of a frozen weight (V, H), of which only a part is ever there in full precision: a
    vocabulary's copy takes gigabytes, and autograd would keep it until backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.cat([nn.functional.linear(x, wide(part)) for part in _parts(weight)], dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        (of_logits,) = gradients
        rows = [len(part) for part in _parts(weight)]
        products = zip(of_logits.split(rows, dim=-1), _parts(weight), strict=True)
        return sum((part @ wide(of_part) for part, of_part in products), of_logits.new_zeros(())), None


def _parts(weight: Tensor) -> Sequence[Tensor]:
    return weight.split(max(1, COPIED_NUMBERS // weight.shape[1]))


@contextmanager
def answer_rows(head: nn.Linear, ids: Sequence[int]) -> Iterator[None]:
    """Let an output layer compute the logits of `ids` only, in float32 or wider (see `keep_head_precision`).

    (..., V) becomes (..., len(ids)).
    """
    weight = wide(head.weight[list(ids)])
    bias = None if head.bias is None else wide(head.bias[list(ids)])

    def forward(hidden: Tensor) -> Tensor:
        return nn.functional.linear(wide(hidden), weight, bias)

    head.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del head.forward
