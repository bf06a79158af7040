"""Tiny training runs for the tests of the trainer: how to set one up, and what to read from it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flipped_kd.students.lora import default_lora
from flipped_kd.training.config import FlippedDistillationConfig
from flipped_kd.training.trainer import FlippedDistillationTrainer

# Gradients as backward left them.
UNCLIPPED: dict[str, Any] = {"max_grad_value": 0.0, "max_grad_norm": 0.0}
# No pair dropped, whatever the random teacher thinks: no term is ever empty.
EVERY_PAIR: dict[str, Any] = {"positive_threshold": 0.0, "negative_threshold": 1.0}
# A student that stays where it is, so that the batches of several steps meet the same weights.
STILL: dict[str, Any] = {"learning_rate": 0.0, **UNCLIPPED}
PLAIN: dict[str, Any] = {"sup_weight": 1.0, "dist_weight": 0.0, "mcl_weight": 0.0}


def settings(folder: Path, **changes: Any) -> FlippedDistillationConfig:
    """Settings of a short silent run on the CPU in float32: batches of 8, logged at each step, nothing saved."""
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "max_steps": 4,
        "learning_rate": 3e-3,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "precision": "fp32",
        # Every adapted module of the few that there are.
        "encoder_layers": "all",
        "encoder_modules": ["all"],
    }
    return FlippedDistillationConfig(**(values | changes))


def lora(dropout: float = 0.0) -> LoraConfig:
    """A small LoRA on every linear layer; without dropout unless asked."""
    return default_lora(rank=4, alpha=8, dropout=dropout)


def new_trainer(
    args: FlippedDistillationConfig,
    student: Any,
    teacher: Any,
    train: datasets.Dataset | None,
    held_out: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    peft_config: LoraConfig | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **options: Any,
) -> FlippedDistillationTrainer:
    """A trainer with the small LoRA without dropout."""
    return FlippedDistillationTrainer(
        student,
        teacher,
        args,
        train,
        held_out,
        tokenizer,
        peft_config or lora(),
        callbacks=list(callbacks),
        **options,
    )


def trainer_factory(
    folder: Path,
    student: Any,
    teacher: Path,
    train: datasets.Dataset,
    held_out: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[..., FlippedDistillationTrainer]:
    """Makes trainers of the tiny fixtures; any part and any setting can be replaced by name."""

    def build(**changes: Any) -> FlippedDistillationTrainer:
        parts: dict[str, Any] = {
            "model": copy.deepcopy(student),
            "teacher": str(teacher),
            "train_dataset": train,
            "eval_dataset": held_out,
            "processing_class": tokenizer,
            "peft_config": lora(),
        }
        optional = ("columns", "prompt", "callbacks", "compute_metrics", "unlabelled_texts", "optimizers")
        options = {name: changes.pop(name) for name in [*parts, *optional] if name in changes}
        args = changes.pop("args", None) or settings(folder, **changes)
        return FlippedDistillationTrainer(args=args, **(parts | options))

    return build


def uneven_stream(pairs: datasets.Dataset) -> datasets.IterableDataset:
    """A stream in two shards: of 13 pairs, three batches of 4 and a rest, and of 20, five batches."""
    every = [dict(row) for row in pairs.select(range(33))]

    def rows(shards: list[list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            yield from shard

    return datasets.IterableDataset.from_generator(rows, gen_kwargs={"shards": [every[:13], every[13:]]})


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable weights by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def frozen(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the frozen weights by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if not weight.requires_grad}


def gradients_of(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Gradients of `loss` for every trainable weight; zero where the graph does not reach it."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for (name, weight), gradient in zip(weights.items(), found, strict=True)
    }


def logged(trainer: FlippedDistillationTrainer, name: str = "loss") -> list[float]:
    """The values of one name in the training log, step by step."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def _labelled(name: str) -> Callable[[str], str]:
    return lambda text: f"{name}: {text}"


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float, rtol: float = 0.0) -> None:
    """Compare tensors by name; a failure names the first that differs."""
    assert found.keys() == expected.keys() and found
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=atol, rtol=rtol, msg=_labelled(name))


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit equality by name."""
    assert found.keys() == expected.keys() and found
    different = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not different


class Stopped(Exception):
    """What an interrupted run dies of."""


class StopAt(TrainerCallback):
    """Raises when a step begins, or when a checkpoint has been saved."""

    def __init__(self, step: int = -1, saved: int = -1) -> None:
        self.step, self.saved = step, saved

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self.step:
            raise Stopped

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == self.saved:
            raise Stopped


class Gradients(TrainerCallback):
    """Keeps the gradients that each optimizer step is given, each as `read` gives it."""

    def __init__(self, read: Callable[[Tensor], Tensor] = Tensor.clone) -> None:
        self.read = read
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        weights = model.named_parameters()
        self.steps.append({name: self.read(weight.grad) for name, weight in weights if weight.grad is not None})


class RecordingTrainer(FlippedDistillationTrainer):
    """Keeps the inputs of each training micro-batch, the numbers of its rows and its loss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches: list[dict[str, Tensor]] = []
        self.rows: list[list[int]] = []
        self.losses: list[float] = []

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        self.batches.append(inputs)
        self.rows.append(inputs["rows"].tolist())
        result = super().training_step(model, inputs, num_items_in_batch)
        self.losses.append(float(result) * self.current_gradient_accumulation_steps)
        return result
