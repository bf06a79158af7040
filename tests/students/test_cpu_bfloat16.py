"""Products of bfloat16 in float32: rounded once, forward and backward, wherever a student is read; nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from flipped_kd.inference.matcher import FlippedMatcher
from flipped_kd.students import cpu_bfloat16
from flipped_kd.students.cpu_bfloat16 import PRODUCTS, fast_bfloat16

CPU = torch.device("cpu")


class Products(TorchDispatchMode):
    """Notes the dtype of every product that reaches torch's kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Any, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            self.found.append((func, args[0].dtype))
        return func(*args, **(kwargs or {}))

    def dtypes(self) -> set[torch.dtype]:
        return {dtype for _, dtype in self.found}


@pytest.fixture(params=[False, True], ids=["emulates", "has_units"])
def has_units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether the CPU is said to multiply bfloat16 itself; torch's products are right on either."""
    monkeypatch.setattr(cpu_bfloat16, "cpu_has_bfloat16", lambda: request.param)
    yield request.param


CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "mm": lambda x: x[0, 0] @ x[0, 1].T,
    "addmm": lambda x: torch.addmm(x[0, 0, 0, :6], x[0, 0], x[0, 1].T, beta=0.5),
    "bmm": lambda x: x @ x.transpose(-1, -2),
    "baddbmm": lambda x: torch.baddbmm(x[0, :, :, :6], x[0], x[1].transpose(-1, -2), alpha=0.125),
    "linear": lambda x: F.linear(x, x[0, 0]),
    "causal attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "masked attention": lambda x: F.scaled_dot_product_attention(x, x, x, x.detach()[..., :6]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_product_is_that_of_float32_rounded_and_so_is_its_gradient(case: str, has_units: bool) -> None:
    torch.manual_seed(0)
    values = torch.randn(2, 3, 6, 16).bfloat16()
    weights: list[Tensor] = []

    def read(given: Tensor) -> tuple[Tensor, Tensor]:
        given = given.clone().requires_grad_()
        output = CASES[case](given)
        weights.append(weights[0] if weights else torch.randn(output.shape).bfloat16())
        output.backward(weights[0].to(output.dtype))
        assert given.grad is not None
        return output.detach(), given.grad

    with Products() as products, fast_bfloat16(torch.bfloat16, CPU):
        output, gradient = read(values)
    assert output.dtype == gradient.dtype == torch.bfloat16
    assert products.dtypes() == {torch.bfloat16 if has_units else torch.float32}
    exact, exact_gradient = read(values.float())
    if not has_units:
        assert torch.equal(output, exact.bfloat16())
        with torch.inference_mode(), fast_bfloat16(torch.bfloat16, CPU):
            assert torch.equal(CASES[case](values), output)
    # Sums of several products' gradients are rounded one by one.
    assert (gradient.float() - exact_gradient).abs().max() <= 0.03 * exact_gradient.abs().max()


def test_other_dtypes_and_devices_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_bfloat16, "cpu_has_bfloat16", lambda: False)
    for dtype in (torch.float32, torch.float64, torch.float16):
        values = torch.randn(5, 5).to(dtype)
        expected = values @ values
        with Products() as products, fast_bfloat16(torch.bfloat16, CPU):
            assert torch.equal(values @ values, expected)
        assert products.dtypes() == {dtype}
    with fast_bfloat16(torch.bfloat16, CPU):
        meta = torch.empty(5, 5, dtype=torch.bfloat16, device="meta")
        assert (meta @ meta).dtype == torch.bfloat16


def test_it_is_off_where_there_is_nothing_to_multiply_and_not_on_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_bfloat16, "cpu_has_bfloat16", lambda: False)
    stack = torch.utils._python_dispatch._get_current_dispatch_mode_stack
    for dtype, device in ((torch.float32, CPU), (torch.bfloat16, torch.device("cuda"))):
        with fast_bfloat16(dtype, device):
            assert stack() == []
    with fast_bfloat16(torch.bfloat16, CPU):
        with fast_bfloat16(torch.bfloat16, CPU):
            assert len(stack()) == 1
        assert len(stack()) == 1
    assert stack() == []


def test_compiled_code_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile leaves functions alone that are called under most modes."""
    monkeypatch.setattr(cpu_bfloat16, "cpu_has_bfloat16", lambda: False)
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch.compiler.reset()
    product = torch.compile(lambda x: x @ x, backend=backend)
    values = torch.randn(4, 4).bfloat16()
    with fast_bfloat16(torch.bfloat16, CPU):
        assert torch.equal(product(values), (values.float() @ values.float()).bfloat16())
    assert len(compiled) == 1


@pytest.mark.parametrize("options", [{}, {"mini_batch_size": 2}, {"activation_checkpointing": True}], ids=str)
def test_training_and_evaluation_leave_no_product_of_bfloat16(
    options: dict[str, Any], build: Any, has_units: bool
) -> None:
    """The student's, of which the backward pass has two for each; afterwards the matcher reads the same model."""
    trainer = build(precision="bf16", max_steps=2, **options)
    with Products() as before:
        trainer.evaluate()
    with Products() as during:
        trainer.train()
    with Products() as after:
        trainer.evaluate()
        FlippedMatcher(trainer.model, trainer.processing_class, trainer.prompt, trainer.encoder).encode(["one", "two"])
    for products in (before, during, after):
        assert len(products.found) > 20
        assert (torch.bfloat16 in products.dtypes()) == has_units


def test_losses_are_those_of_torchs_own_products(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To bfloat16's eight bits; the same batches and the same dropout."""
    found = []
    for units in (False, True):
        monkeypatch.setattr(cpu_bfloat16, "cpu_has_bfloat16", lambda units=units: units)
        trainer = build(precision="bf16", max_steps=3, logging_steps=1)
        trainer.train()
        found.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(found[0]) == 3
    assert found[0] == pytest.approx(found[1], rel=0.02)


def test_a_matcher_in_bfloat16_reads_in_float32(
    build: Any, student_dir: Path, tmp_path: Path, has_units: bool
) -> None:
    build(model=student_dir).save_model(str(tmp_path))
    pairs = [("open an account", "how do I open one"), ("lost my card", "my card was stolen")]
    matcher = FlippedMatcher.from_pretrained(str(tmp_path), dtype="bfloat16")
    with Products() as products:
        found = matcher.predict(pairs)
        matcher.encode([text for pair in pairs for text in pair])
        matcher.rank(pairs[0][0], [text for _, text in pairs])
    assert len(products.found) > 20
    assert (torch.bfloat16 in products.dtypes()) == has_units
    exact = FlippedMatcher.from_pretrained(str(tmp_path)).predict(pairs)
    assert np.abs(found - exact).max() < 0.05
