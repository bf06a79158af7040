"""The trainer's settings. Those that recipes have beside them stand in `experiments.arguments`.

One file, though long: every setting stands beside its help and its check.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import SchedulerType, TrainingArguments

from ..losses.build import OBJECTIVES
from ..losses.contrastive import CONTRASTS, MARGINS
from ..losses.flipped import CONTRAST_FILTERS
from ..utils.checks import is_number, require, require_integer
from ..utils.choices import POOLINGS, SCORE_KINDS
from ..utils.devices import DTYPES, has_bfloat16

# Metrics of an evaluation that are better the lower they are, by their endings. transformers knows "loss" alone, and
# would keep the worst checkpoint by loss_dist.
LOWER_IS_BETTER = ("loss", "loss_sup", "loss_dist", "loss_mcl", "dropped_positive", "dropped_negative")

SAMPLING = ("group_by_length", "random", "sequential")
# What makes of the method plain fine-tuning, which needs no teacher.
PLAIN: dict[str, Any] = {"answer_teacher_weight": 0.0, "dist_weight": 0.0, "mcl_weight": 0.0}


# Settings that are real numbers, beside TrainingArguments' own, and those that may be None.
NUMBERS = (
    *("sup_weight", "dist_weight", "mcl_weight", "margin", "temperature"),
    *("positive_threshold", "negative_threshold"),
    *("answer_teacher_weight", "answer_vocabulary_weight"),
)
MAYBE_NUMBERS = ("max_grad_value",)


def _mapping(value: Any) -> Any:
    """A mapping given as JSON text, as flags give it, or the value itself."""
    return json.loads(value) if isinstance(value, str) and value.startswith("{") else value


@dataclass
class FlippedDistillationConfig(TrainingArguments):
    """Everything that [`FlippedDistillationTrainer`] can be told, on top of transformers' TrainingArguments.

    Defaults of the method are the paper's (arXiv 2507.05617, section 4) where it gives them, and marked so; what it
    leaves open is our reading, chosen by measuring (docs/choices.md). Those that differ from TrainingArguments prevent
    known accidents: raw text columns stay (`remove_unused_columns=False`), DDP does not look for unused parameters,
    activation checkpointing is non-reentrant, gradients are clipped by value. Pairs of like length share a batch
    (`train_sampling_strategy`), which saves padding and shows the contrast no length to go by.

    Args:
        max_length: tokens of a whole pair prompt, at least 16, and no more than a student with a table of positions
            has of them; texts are cut to fit, the instruction and the answer position never are.
        prompt: preset of [`PairPrompt`]: "en", "zh", or the form of a published reranker, "qwen3_reranker" or
            "bge_reranker_gemma".
        instruction: replaces the preset's instruction; "" leaves it out.
        representation: how text_b is represented in training. "independent": encoded alone, as at search time, and
            compared with every text_a of the batch. "joint": as read in its pair, after text_a, and compared with that
            text only; cheaper, since no text is read twice. "both": the sum of the two, at the cost of "independent".
            Only what is read in the pair teaches the student to compare inside the pair, which is what the answer
            needs: on banking77 the answer's AUC was .53 to .58 with "independent", .75 with "joint" and .64 to .76
            with "both" (three seeds; .60 with the mean in place of the sum), the similarity's .78 to .87, .82 and .85
            (plain fine-tuning: .53). See docs/choices.md.
        learning_rate: None takes one by the student's size (`students.size`): 1e-3 below 200 million weights, 5e-4
            below a billion, else 2e-4; the log says which. The paper's 3e-5 is for full fine-tuning of a large part.
        loraplus_lr_ratio: the rate of LoRA's B over `learning_rate`, which is A's, finite and above 0 (LoRA+, arXiv
            2402.12354). A starts from the teacher and needs little; B starts at 0 and has the answer to learn. 1: one
            rate for both (docs/choices.md).
        max_steps: as in TrainingArguments, but 0 is no step at all: A starts from the teacher, and that is what is
            saved, scored and reported. Vectors for search in a minute.
        encoder_layers: decoder layers whose A matrices form the encoder: "all", "last:2", "first:2", a share such as
            "first:50%", or comma-separated numbers.
        encoder_modules: which adapted modules of these layers: "widest" (in each layer the one with the widest input,
            which is the feed-forward network's last), "all" (kept as None), or endings of module names.
        encoder_pooling: how the outputs of A become one vector: "sum" over the modules (r numbers), or "concat" of
            them (r numbers a module).
        encoder_rank: r of the encoder's modules alone, at least 1; the others keep the LoraConfig's. Longer vectors
            find more among thousands of texts (docs/results.md). None: the LoraConfig's.
        encoder_start: where A starts. "teacher": so that representations resemble the teacher's vectors before any
            step (`training.encoder_start`). "random": as PEFT starts it. "auto": from the teacher where it gives
            vectors and there are texts enough before training (not of a stream), else at random, and the log says so.
            With dist_weight, mcl_weight and answer_teacher_weight 0, an adapter of one's own, or init_lora_weights in
            the LoraConfig, A is left alone.
        sup_weight: weight of L_sup, the answer's cross-entropy, finite and >= 0, as the two others.
        answer_teacher_weight: w in [0, 1]: the answer is taught (1 - w) by the gold label and w by the teacher's P. 0
            is the paper's. The label alone leaves answer and vectors two opinions, so that both scores together are
            worth more (docs/choices.md).
        answer_vocabulary_weight: v in [0, 1]: 0 teaches yes against no, which is what is scored; 1 is the paper's
            cross-entropy over the whole vocabulary, which teaches to say one of the two as well. In between it counts
            so much (`AnswerLoss`, docs/choices.md).
        dist_weight: weight of L_dist, the alignment of similarities with the teacher.
        mcl_weight: weight of L_MCL, the margin-aware contrast. With this, dist_weight and
            answer_teacher_weight 0 it is plain LoRA fine-tuning.
        contrast: "pairwise" or "infonce" (our readings; see `MarginAwareContrastiveLoss`).
        margin: m_c in radians, in [0, pi] (paper: 0.06).
        positive_margin: scaling of the positives' margin: "teacher" (our reading), "constant" or "none".
        negative_margin: the same for negatives.
        dist_loss: the form of L_dist (the paper says "aligned"; all are our readings). "pearson" wants similarities
            that rise in a line with the teacher's; "mse" wants the same ones, which fights a start that has no offset
            (SmolLM2, banking77: AUC of the answer .84 against .71, of both .900 against .882); "kl", or another
            objective in the place of L_dist: "margin_mse", "pairwise_logistic", "plackett_luce", "sinkhorn", "cosent",
            "angle" (docs/objectives.md).
        temperature: t in (0, 100] of L_MCL and of every `dist_loss` but "mse", "margin_mse" and
            "pearson".
        positive_threshold: tau_pos in [0, 1]: a positive stays in L_dist if the teacher's P >= tau_pos; 0 keeps every
            one (paper: 0.5).
        negative_threshold: tau_neg in [0, 1]: a negative stays in L_dist if P < tau_neg; 1 keeps every one (paper:
            0.5).
        contrast_filter: what the thresholds drop from L_MCL: only pairs of the batch whose label 0 is "assumed" (texts
            that no row of the data set pairs), or "all" on which teacher and label disagree, as from L_dist and as in
            the paper: for labels that are wrong more often than the teacher. Where only labelled pairs are compared
            (representation="joint", a cross-encoder teacher) "assumed" drops none from L_MCL.
        gather_across_devices: contrast every rank's texts with those of all ranks, with exact gradients: many ranks
            then train as one process with the whole global batch does. Without it each rank's contrast is its own
            batch, and gradients are averaged, as everywhere.
        mini_batch_size: pairs the student reads at a time, at least 1. The contrast is still
            per_device_train_batch_size (times the ranks, if gathered), by gradient caching: a second forward instead
            of the memory. None: all at once. Gradient accumulation never enlarges the contrast.
        score: what predictions are made of: "answer", "similarity" or "both".
        max_grad_value: clips each gradient entry to [-v, v] (paper: 1). None: 1 where possible (one process, DDP),
            else max_grad_norm with one log line. 0: no clipping by value, max_grad_norm applies.
        precision: "auto" (what `accelerate launch` was told, else bf16 autocast on a GPU that has it, else float32),
            "bf16", "fp16" or "fp32". Once resolved it is one of the last three.
        teacher_cache_dir: folder of the teacher's scores, shared between runs; by default <output_dir>/_teacher_cache.
        teacher_batch_size: texts a forward of the teacher, at least 1.
        cpu_threads: threads of torch on a CPU. None: where a launcher has set one thread and the machine has more
            cores than processes, the cores over the processes; else as it is.

    Raises:
        ValueError: a setting is out of range or contradicts another; the message names it, the rule and the remedy.

    Examples:
        >>> settings = FlippedDistillationConfig(output_dir=folder, representation="joint", dist_loss="mse")
        >>> settings.margin, settings.weight_decay, settings.distils
        (0.06, 0.1, True)
        >>> FlippedDistillationConfig(output_dir=folder, dist_weight=0, mcl_weight=0, answer_teacher_weight=0).distils
        False
        >>> FlippedDistillationConfig(output_dir=folder, margin=4.0)
        Traceback (most recent call last):
        ValueError: margin=4.0: an angular margin lies in [0, pi] radians (paper: 0.06).
    """

    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Initial learning rate; by default by the student's size, 1e-3 to 2e-4."}
    )
    loraplus_lr_ratio: float = field(
        default=1.0, metadata={"help": "Learning rate of LoRA's B over that of A, which is learning_rate."}
    )
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Warm-up: a share of all steps below 1, else a number of steps."}
    )
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay of AdamW."})
    adam_beta2: float = field(
        default=0.98, metadata={"help": "AdamW's second moment forgets the steep first steps of a short run."}
    )
    per_device_train_batch_size: int = field(
        default=16,
        metadata={"help": "Pairs per device, and of the contrast; small sets need many steps, so take few."},
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Pairs per device in evaluation."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "Which pairs share a batch: those of like length; a stream comes in its own order.",
            "choices": list(SAMPLING),
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: the collator reads raw text."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "All parameters are used in every step."}
    )
    ddp_broadcast_buffers: bool | None = field(
        default=False, metadata={"help": "A decoder's buffers are constants: nothing to broadcast at each forward."}
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"], metadata={"help": "Keys of labels in a batch."}
    )
    activation_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default_factory=lambda: {"use_reentrant": False},
        metadata={"help": "Non-reentrant: reentrant cuts A's gradient."},
    )

    max_length: int = field(default=256, metadata={"help": "Tokens of a whole pair prompt."})
    prompt: str = field(default="en", metadata={"help": "Prompt preset: en, zh, qwen3_reranker, bge_reranker_gemma."})
    instruction: str | None = field(
        default=None, metadata={"help": "Replaces the preset's instruction; empty leaves it out."}
    )
    representation: str = field(
        default="both", metadata={"help": "How text_b is read in training: independent, joint or both."}
    )
    encoder_layers: str = field(
        default="first:50%",
        metadata={"help": "Layers of the encoder: all, last:2, first:50%%, or numbers such as 3,4."},
    )
    encoder_modules: list[str] | None = field(
        default_factory=lambda: ["widest"],
        metadata={"help": "Modules of the encoder: widest, all, or endings of module names."},
    )
    encoder_pooling: str = field(default="sum", metadata={"help": "sum or concat: how A's outputs become a vector."})
    encoder_rank: int | None = field(
        default=None, metadata={"help": "Rank of the encoder's A, and numbers of a vector; by default LoRA's own."}
    )
    encoder_start: str = field(default="auto", metadata={"help": "Where A starts: auto, teacher or random."})
    sup_weight: float = field(default=1.0, metadata={"help": "Weight of L_sup."})
    answer_teacher_weight: float = field(
        default=0.0, metadata={"help": "The teacher's share in teaching the answer, in [0, 1]."}
    )
    answer_vocabulary_weight: float = field(
        default=0.0, metadata={"help": "In [0, 1]: 0 teaches yes against no, 1 against the whole vocabulary (paper)."}
    )
    dist_weight: float = field(default=1.0, metadata={"help": "Weight of L_dist."})
    mcl_weight: float = field(default=1.0, metadata={"help": "Weight of L_MCL."})
    contrast: str = field(default="pairwise", metadata={"help": "pairwise or infonce."})
    margin: float = field(default=0.06, metadata={"help": "Angular margin m_c in radians."})
    positive_margin: str = field(default="teacher", metadata={"help": "teacher, constant or none."})
    negative_margin: str = field(default="teacher", metadata={"help": "teacher, constant or none."})
    dist_loss: str = field(
        default="pearson", metadata={"help": "pearson, mse, kl or another objective (docs/objectives.md)."}
    )
    temperature: float = field(default=0.05, metadata={"help": "Temperature of L_MCL, kl and most objectives."})
    positive_threshold: float = field(default=0.5, metadata={"help": "tau_pos in [0, 1]; 0 keeps every positive."})
    negative_threshold: float = field(default=0.5, metadata={"help": "tau_neg in [0, 1]; 1 keeps every negative."})
    contrast_filter: str = field(
        default="assumed", metadata={"help": "assumed or all: which pairs the thresholds drop from L_MCL."}
    )
    gather_across_devices: bool = field(
        default=False, metadata={"help": "Contrast with the texts of all ranks, not of the own one alone."}
    )
    mini_batch_size: int | None = field(
        default=None, metadata={"help": "Pairs the student reads at a time; the contrast stays the whole batch."}
    )
    score: str = field(default="both", metadata={"help": "Score of predictions: answer, similarity or both."})
    max_grad_value: float | None = field(default=None, metadata={"help": "Clip gradients by value; 0 turns it off."})
    precision: str = field(default="auto", metadata={"help": "auto, bf16, fp16 or fp32."})
    teacher_cache_dir: str | None = field(default=None, metadata={"help": "Folder of cached teacher scores."})
    cpu_threads: int | None = field(
        default=None, metadata={"help": "Threads of a process on a CPU; by default its share of the cores."}
    )
    teacher_batch_size: int = field(default=64, metadata={"help": "Texts a forward of the teacher."})

    def __post_init__(self) -> None:
        for name, value in vars(self).items():  # as JSON takes them
            if isinstance(value, np.generic | os.PathLike):
                setattr(self, name, value.item() if isinstance(value, np.generic) else os.fspath(value))
        if self.teacher_cache_dir is not None:  # as TrainingArguments does with output_dir
            self.teacher_cache_dir = os.path.expanduser(self.teacher_cache_dir)
        self._resolve_precision()
        self._resolve_checkpointing()
        self._check_deepspeed()
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = not self.metric_for_best_model.endswith(LOWER_IS_BETTER)
        super().__post_init__()
        if self.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY):
            # Both take every metric for a loss unless they are told.
            mode = "max" if self.greater_is_better else "min"
            self.lr_scheduler_kwargs = {"mode": mode, **(_mapping(self.lr_scheduler_kwargs) or {})}
        # Trainer hands this to Accelerator; TrainingArguments would let the launcher override an explicit fp32.
        self.mixed_precision = "no" if self.precision == "fp32" else self.precision
        self._check_method()
        self._check_training()

    def _resolve_precision(self) -> None:
        allowed = ("auto", "bf16", "fp16", "fp32")
        require(self.precision in allowed, "precision", self.precision, f"choose one of {list(allowed)}.")
        for flag, on in (("bf16", self.bf16), ("fp16", self.fp16)):
            if on:
                rule = f"it contradicts {flag}=True; give one of the two (in a copy of settings, {flag}=False too)."
                require(self.precision in ("auto", flag), "precision", self.precision, rule)
                self.precision = flag
        on_accelerator = torch.accelerator.is_available() and not self.use_cpu
        if self.precision == "auto":
            launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
            on_gpu = on_accelerator and has_bfloat16()
            self.precision = launched if launched in ("bf16", "fp16") else "bf16" if on_gpu else "fp32"
        rule = "a CPU has no float16 training; use 'bf16' or 'fp32'."
        require(self.precision != "fp16" or on_accelerator, "precision", self.precision, rule)
        self.bf16, self.fp16 = self.precision == "bf16", self.precision == "fp16"
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # transformers accepts bf16 on a CPU only where the CPU was asked for
        # Pinned memory serves copies to an accelerator; without one, torch warns at every data loader.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()

    def _resolve_checkpointing(self) -> None:
        """Make non-reentrant the default and refuse the other: reentrant recomputation cuts the gradient of A."""
        options = _mapping(self.activation_checkpointing_kwargs)
        # The deprecated name would be ignored beside our default, a wish for reentrant silently so.
        for given in (options, _mapping(self.gradient_checkpointing_kwargs)):
            if isinstance(given, dict) and given.get("use_reentrant"):
                raise ValueError(
                    f"activation_checkpointing_kwargs={given} cuts the gradient of A's outputs, so L_dist and L_MCL "
                    "would train nothing: use {'use_reentrant': False}."
                )
        if options is None or isinstance(options, dict):
            # The old name counts where the new one says nothing: in a copy of settings it mirrors the new one.
            if options in (None, {"use_reentrant": False}):
                options = _mapping(self.gradient_checkpointing_kwargs)
            self.activation_checkpointing_kwargs = {"use_reentrant": False, **(options or {})}

    def _check_deepspeed(self) -> None:
        """Refuse DeepSpeed settings that want a learning rate before the student is known."""
        given: Any = self.deepspeed
        if isinstance(given, str | os.PathLike) and os.path.isfile(given):  # not JSON in base64
            given = json.loads(Path(given).read_text(encoding="utf-8"))
        if self.learning_rate is None and isinstance(given, dict) and {"optimizer", "scheduler"} & given.keys():
            raise ValueError(
                "deepspeed settings with an optimizer or scheduler are filled in before the student is loaded, whose "
                "size decides the default learning_rate: give learning_rate."
            )

    def _check_method(self) -> None:
        for name, allowed in {
            "representation": ("independent", "joint", "both"),
            "contrast": CONTRASTS,
            "encoder_pooling": POOLINGS,
            "encoder_start": ("auto", "teacher", "random"),
            "contrast_filter": CONTRAST_FILTERS,
            "dist_loss": tuple(OBJECTIVES),
            "positive_margin": MARGINS,
            "negative_margin": MARGINS,
            "score": SCORE_KINDS,
        }.items():
            value = getattr(self, name)
            require(value in allowed, name, value, f"choose one of {list(allowed)}.")
        for name in NUMBERS + MAYBE_NUMBERS:
            value = getattr(self, name)
            absent = value is None and name in MAYBE_NUMBERS
            require(absent or is_number(value), name, value, "give one number.")
        for name in ("sup_weight", "dist_weight", "mcl_weight"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, name, value, "a loss weight is a finite number >= 0.")
        if self.sup_weight + self.dist_weight + self.mcl_weight == 0:
            raise ValueError(
                "sup_weight, dist_weight and mcl_weight are all 0: nothing would be trained; raise one of them."
            )
        rule = "the answer is taught by label and teacher: give the teacher's share, in [0, 1]."
        value = self.answer_teacher_weight
        require(0 <= value <= 1, "answer_teacher_weight", value, rule)
        value = self.answer_vocabulary_weight
        rule = "0 teaches yes against no, 1 against the whole vocabulary: give a share, in [0, 1]."
        require(0 <= value <= 1, "answer_vocabulary_weight", value, rule)
        value = self.answer_teacher_weight
        rule = "with sup_weight=0 no answer is taught: raise that, or set this to 0."
        require(not value or self.sup_weight > 0, "answer_teacher_weight", value, rule)
        rule = "an angular margin lies in [0, pi] radians (paper: 0.06)."
        require(0 <= self.margin <= math.pi, "margin", self.margin, rule)
        rule = "it must lie in (0, 100]; 0.05 is usual."
        require(0 < self.temperature <= 100, "temperature", self.temperature, rule)
        for name in ("positive_threshold", "negative_threshold"):
            value = getattr(self, name)
            require(0 <= value <= 1, name, value, "a threshold is a probability in [0, 1]; 0.5 means undecided.")
        if self.representation != "independent":
            rule = f"representation={self.representation!r} compares a text_b with its own text_a only: use "
            rule += "contrast='pairwise' or representation='independent'."
            require(self.contrast == "pairwise", "contrast", self.contrast, rule)
        if not isinstance(self.encoder_layers, str):  # one number or several, as Python code may give them
            numbers = [self.encoder_layers] if isinstance(self.encoder_layers, int) else self.encoder_layers
            self.encoder_layers = ",".join(str(number) for number in numbers)
        if isinstance(self.encoder_modules, str):
            self.encoder_modules = [name.strip() for name in self.encoder_modules.split(",")]
        if self.encoder_modules is not None:
            self.encoder_modules = list(self.encoder_modules)
        if self.encoder_modules == ["all"]:
            self.encoder_modules = None
        require_integer("max_length", self.max_length, 16, "a pair prompt needs at least 16 tokens.")
        if self.encoder_rank is not None:
            require_integer("encoder_rank", self.encoder_rank, 1, "None takes the rank of the LoraConfig.")
        if self.mini_batch_size is not None:
            require_integer("mini_batch_size", self.mini_batch_size, 1, "None reads the whole batch at once.")
        if self.cpu_threads is not None:
            require_integer("cpu_threads", self.cpu_threads, 1, "leave it out to use what the machine has.")
        require_integer("teacher_batch_size", self.teacher_batch_size, 1, "a forward of the teacher needs a text.")

    def _check_training(self) -> None:
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns=True would drop text_a and text_b before the collator reads them: leave it "
                "False."
            )
        if self.max_grad_value is not None:
            rule = "clip at a finite positive value, or give 0 for no clipping by value."
            finite = math.isfinite(self.max_grad_value) and self.max_grad_value >= 0
            require(finite, "max_grad_value", self.max_grad_value, rule)
            if self.max_grad_value and not self.max_grad_norm:
                # Trainer skips its clipping step where this is 0, which says nothing about clipping by value.
                self.max_grad_norm = TrainingArguments.max_grad_norm
        ratio = self.loraplus_lr_ratio
        rule = "give a finite factor above 0; 1 is one rate for A and B."
        require(math.isfinite(ratio) and ratio > 0, "loraplus_lr_ratio", ratio, rule)
        for name in ("bf16_full_eval", "fp16_full_eval"):
            rule = "it would round the adapter that is being trained, in place: give precision instead."
            require(not getattr(self, name), name, getattr(self, name), rule)
        rule = "scores of all pairs are one array; leave it True."
        require(self.eval_do_concat_batches, "eval_do_concat_batches", self.eval_do_concat_batches, rule)
        rule = "batches share rows or are read in parts, which it would count wrongly; leave it 'no'."
        value = self.include_num_input_tokens_seen
        right = value == "no" or (value == "all" and self.mini_batch_size is None)
        require(right, "include_num_input_tokens_seen", value, rule)
        rule = "lengths are counted here, of text_a and text_b together; leave it 'length'."
        require(self.length_column_name == "length", "length_column_name", self.length_column_name, rule)
        rule = "batches share rows, so that a row of the inputs need not be a pair; leave 'inputs' out."
        require("inputs" not in self.include_for_metrics, "include_for_metrics", self.include_for_metrics, rule)
        rule = f"choose one of {list(SAMPLING)}; batches of unequal numbers of pairs would weigh pairs unequally."
        value = self.train_sampling_strategy
        require(value in SAMPLING, "train_sampling_strategy", value, rule)
        rule = "it makes the contrast smaller and not what is read at a time: give a smaller mini_batch_size instead."
        right = not (self.auto_find_batch_size and self.mini_batch_size is not None)
        require(right, "auto_find_batch_size", self.auto_find_batch_size, rule)
        rule = "L_sup is the cross-entropy of one answer token; leave it 0."
        require(self.label_smoothing_factor == 0, "label_smoothing_factor", self.label_smoothing_factor, rule)

    @property
    def product_dtype(self) -> torch.dtype:
        """The dtype that the student's products are taken in."""
        return DTYPES.get(self.precision, torch.float32)

    @property
    def distils(self) -> bool:
        """Whether the teacher takes part at all."""
        return any(getattr(self, name) for name in PLAIN)
