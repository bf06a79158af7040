"""FlippedDistillationTrainer: a transformers Trainer whose loss is the answer, the teacher's similarities and a
margin-aware contrast."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import datasets
import numpy as np
import torch
from peft import LoraConfig, PeftModel
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from .checkpoint_push import PublishingTrainer
from .collator import TeacherScoringCollator
from .config import FlippedDistillationConfig
from .data import PAIR_FEATURES, PairColumns, validate_pairs
from .encoder import LoraEncoder
from .keys import KnownMatches, dataset_keys
from .loss_log import LossLog
from .losses import paired_cosines
from .metrics import PairMatching
from .packing import additive_mask, packing_offset
from .prompts import PairPrompt
from .scoring import MatchScore, ScoreKind
from .student import accepts_logits_to_keep, keep_head_precision, load_tokenizer, padding_id, position_logits
from .teacher import BiEncoderTeacher, CrossEncoderTeacher, PlattCalibration, agreement_report
from .trainer_setup import (
    build_loss,
    check_args,
    check_batches,
    name_of,
    prepare_student,
    prepare_teacher,
    resolve_clipping,
)

logger = logging.getLogger(__name__)
PairDatasets: TypeAlias = datasets.Dataset | Mapping[str, datasets.Dataset] | None
DROPPED_SHARE_LIMIT = 0.3
MIN_PACKED_PREFIX = 8  # tokens; measured with benchmarks/step_cost.py


@dataclass
class PairVectors:
    """Representations (B, D) of a batch of pairs: the first texts, the second ones as they are compared, and the
    second ones as read in the pair."""

    text_a: Tensor
    text_b: Tensor
    joint_b: Tensor


class FlippedDistillationTrainer(PublishingTrainer):
    """Teaches a large language model to match text by learning from a small expert (arXiv 2507.05617).

    Everything of [`transformers.Trainer`] works as usual: callbacks, resume, evaluation strategies,
    load_best_model_at_end, compute_metrics. `trainer.model` is the PeftModel itself; the teacher is run once before
    training and stays outside the module tree.

    Args:
        model: the student: a Hub name or folder, a causal language model, or a PeftModel with a trainable LoRA adapter
            named "default".
        teacher: a Hub name or folder, a SentenceTransformer or a CrossEncoder. None with dist_weight = mcl_weight = 0
            (plain fine-tuning).
        args: settings.
        train_dataset: pairs with text_a, text_b, label.
        eval_dataset: held-out pairs, or several by name. The teacher is calibrated and match scores are fitted on (the
            first of) them; without them the teacher is calibrated on the training pairs and no match score is fitted.
        processing_class: the student's tokenizer; loaded by `model`'s name if not given.
        peft_config: LoRA settings for a student without adapter; by default rank 32, alpha 64, dropout 0.05 on all
            linear layers.
        prompt: a PairPrompt; by default the preset of `args.prompt`.
        columns: names of the columns in the data sets, where they are not text_a, text_b, label.
        compute_metrics: takes an EvalPrediction with predictions = (answer log-odds (n,), similarity (n,)) and
            label_ids (n,). By default F1, precision, recall, accuracy (natural threshold), AUC and average precision
            of the answer and, prefixed, of the similarity.
        callbacks: as in Trainer.
        optimizers: as in Trainer.

    Raises:
        ValueError: unusable data, student, teacher or settings; the message names value, rule and remedy. Nothing has
        been trained then.
    """

    _tag_names = ("flipped-kd", "text-matching")
    # The loss is a mean over the micro-batch; Trainer then divides by the accumulation steps.
    loss_is_scaled_for_ga = False
    # Narrower than in Trainer.
    model: PeftModel
    args: FlippedDistillationConfig
    data_collator: TeacherScoringCollator
    processing_class: PreTrainedTokenizerBase

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        teacher: str | SentenceTransformer | CrossEncoder | BiEncoderTeacher | CrossEncoderTeacher | None = None,
        args: FlippedDistillationConfig | None = None,
        train_dataset: datasets.Dataset | None = None,
        eval_dataset: PairDatasets = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: LoraConfig | None = None,
        *,
        prompt: PairPrompt | None = None,
        columns: PairColumns | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ) -> None:
        args = args or FlippedDistillationConfig()
        check_args(args)
        self.columns = columns
        train_dataset = self._checked(train_dataset, "train", numbered=True)
        if isinstance(eval_dataset, Mapping):
            eval_dataset = {name: self._checked(part, name) for name, part in eval_dataset.items()}
        else:
            eval_dataset = self._checked(eval_dataset, "validation")

        set_seed(args.seed)  # A's random start belongs to the seed
        tokenizer = processing_class or load_tokenizer(name_of(model))
        student = prepare_student(model, peft_config)
        self.prompt = prompt or PairPrompt.from_preset(
            tokenizer, args.prompt, max_length=args.max_length, instruction=args.instruction
        )
        self.encoder = LoraEncoder.from_model(student, layers=args.encoder_layers, modules=args.encoder_modules)
        self.keeps_logits = accepts_logits_to_keep(student)
        if self.keeps_logits:
            keep_head_precision(student)
        self.student_dtype = student.dtype
        self.teacher = prepare_teacher(teacher, args)
        # Off the diagonal there is something to compare only if text_b has not read text_a and the teacher can score
        # any two texts.
        self.matrix = args.representation != "joint" and not isinstance(self.teacher, CrossEncoderTeacher)
        self.loss = build_loss(args)
        self.calibration: PlattCalibration | None = None
        self.teacher_report: dict[str, float | int] = {}
        self.match_score = None
        self.scored_step = None
        self.fitted_scores: tuple[np.ndarray, np.ndarray] | None = None  # what the match score was fitted on
        self.loss_log = LossLog()
        super().__init__(
            model=student,
            args=args,
            data_collator=TeacherScoringCollator(
                self.prompt,
                padding_id(tokenizer),
                known_matches=KnownMatches.from_pairs(train_dataset) if train_dataset is not None else None,
                encode_alone=args.representation != "joint",
                matrix=self.matrix,
                position_offset=self._packing_offset(student, args.representation),
            ),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            compute_metrics=compute_metrics or pair_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if train_dataset is not None:
            check_batches(len(train_dataset), args)
        self.clip_value = resolve_clipping(args, self.accelerator)
        if self.teacher is not None:
            self._score_with_teacher([part for part in (train_dataset, *self._eval_parts()) if part is not None])
            self._calibrate()

    # ---- Construction ----

    def _checked(self, dataset: Any, name: str, numbered: bool = False) -> Any:
        if not isinstance(dataset, datasets.Dataset):
            if dataset is None:
                return None
            raise ValueError(
                f"the {name} data set is a {type(dataset).__name__}: give a datasets.Dataset with text_a, text_b, "
                "label."
            )
        dataset = validate_pairs(dataset, columns=self.columns, name=name)
        if not numbered:
            return dataset
        # Row numbers for error messages; characters stand for tokens in train_sampling_strategy="group_by_length".
        lengths = [len(a) + len(b) for a, b in zip(dataset["text_a"], dataset["text_b"], strict=True)]
        return dataset.add_column("row", np.arange(len(dataset))).add_column("length", lengths)

    def _to_score(self, dataset: datasets.Dataset, name: str) -> datasets.Dataset:
        """A checked pair set for evaluation or prediction, where one class will do."""
        if any(dataset is part for part in self._eval_parts()):
            return dataset  # checked at construction
        wanted = set(dataclasses.astuple(PairColumns.of(self.columns)))
        # A part of a set that this trainer has checked before bears the library's own column names.
        renamed = not wanted <= set(dataset.column_names) and set(PAIR_FEATURES) <= set(dataset.column_names)
        return validate_pairs(
            dataset, columns=None if renamed else self.columns, require_both_classes=False, name=name
        )

    def _packing_offset(self, student: PeftModel, representation: str) -> int | None:
        """Packing saves reading a long prefix twice; after a short one a second forward of short rows is cheaper."""
        if representation == "joint" or len(self.prompt.prefix_ids) < MIN_PACKED_PREFIX:
            return None
        return packing_offset(cast(PreTrainedModel, student.get_base_model()), self.prompt.max_length)

    # ---- Teacher ----

    def _eval_parts(self) -> list[datasets.Dataset]:
        if self.eval_dataset is None:
            return []
        return list(self.eval_dataset.values()) if isinstance(self.eval_dataset, Mapping) else [self.eval_dataset]

    def _score_with_teacher(self, parts: list[datasets.Dataset]) -> None:
        """Put every text (pair) of `parts` into the teacher's cache; the main process first, the others then read."""
        assert self.teacher is not None
        options: dict[str, Any] = {
            "cache_dir": self.args.teacher_cache_dir
            or f"{self.args.output_dir}/_teacher_cache",  # "_...": never pushed
            "batch_size": self.args.teacher_batch_size,
            "show_progress": not self.args.disable_tqdm and self.is_world_process_zero(),
        }
        texts_a = [text for part in parts for text in part["text_a"]]
        texts_b = [text for part in parts for text in part["text_b"]]
        with self.args.main_process_first(local=False, desc="scoring with the teacher"):
            if isinstance(self.teacher, CrossEncoderTeacher):
                self.data_collator.teacher_scores = self.teacher.score(texts_a, texts_b, **options)
            else:
                self.data_collator.teacher_scores = self.teacher.embed(texts_a + texts_b, **options)

    def teacher_similarity(self, dataset: datasets.Dataset) -> np.ndarray:
        """The teacher's T of each pair, (n,) in [-1, 1]; texts it has not seen are scored now and cached."""
        if self.teacher is None:
            raise ValueError("this trainer has no teacher (dist_weight = mcl_weight = 0).")
        dataset = self._to_score(dataset, "teacher_similarity")
        self._score_with_teacher([dataset])
        return self._cached_similarity(dataset)

    def _cached_similarity(self, dataset: datasets.Dataset) -> np.ndarray:
        scores = self.data_collator.teacher_scores
        assert scores is not None, "the teacher has scored every data set by now"
        return scores.similarity(*dataset_keys(dataset))

    def _calibrate(self) -> None:
        """Fit P on held-out pairs where there are any: the teacher may have been trained on the training pairs."""
        parts = self._eval_parts()
        held_out = parts[0] if parts else self.train_dataset
        if held_out is None:
            return
        labels = np.asarray(held_out["label"])
        self.calibration = PlattCalibration.fit(self._cached_similarity(held_out), labels)
        checked = held_out if self.train_dataset is None else self.train_dataset
        self.teacher_report = agreement_report(
            self._cached_similarity(checked),
            np.asarray(checked["label"]),
            self.calibration,
            tau_pos=self.args.positive_threshold,
            tau_neg=self.args.negative_threshold,
        )
        for label in ("positive", "negative"):
            share = self.teacher_report[f"dropped_{label}_share"]
            if share > DROPPED_SHARE_LIMIT:
                logger.warning(
                    "the thresholds drop %.0f %% of the %s pairs from L_dist and L_MCL: the teacher disagrees too "
                    "often with the labels; "
                    "use a teacher that knows this domain, or check the labels",
                    100 * share,
                    label,
                )

    # ---- Loss ----

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss of one micro-batch; with `return_outputs` also (answer log-odds (B,), similarity (B,))."""
        labels = inputs["labels"]
        no_id, yes_id = self.prompt.answer_ids
        answers = torch.where(labels.bool(), yes_id, no_id)
        logits, vectors = self._forward(model, inputs, self.teacher is not None or return_outputs)
        teacher_similarity = inputs.get("teacher_similarity")
        if teacher_similarity is None or self.calibration is None:
            loss = self.loss.weights[0] * self.loss.sup(logits, answers)
        else:
            assert vectors is not None
            output = self.loss(
                logits,
                answers,
                labels,
                vectors.text_a,
                vectors.text_b,
                teacher_similarity,
                self.calibration.probability(teacher_similarity),
                inputs.get("excluded"),
                vectors.joint_b if self.args.representation == "both" else None,
            )
            loss = output.total
            self.loss_log.add(output, labels)
        if model.training and not torch.isfinite(loss):
            self._stop_on(loss, inputs)
        if not return_outputs:
            return loss
        assert vectors is not None
        return loss, (_log_odds(logits, self.prompt.answer_ids), paired_cosines(vectors.text_a, vectors.text_b))

    def _forward(
        self, model: nn.Module, inputs: dict[str, Any], vectors: bool = True
    ) -> tuple[Tensor, PairVectors | None]:
        """Answer logits (B, V) and, if asked for, the representations of both texts."""
        packed = "position_ids" in inputs
        pair = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        if packed:
            pair["attention_mask"] = additive_mask(inputs["attention_mask"], self.student_dtype)
            pair["position_ids"] = inputs["position_ids"]
        with self.encoder.capture() as captured:
            logits = position_logits(model, pair, inputs["answer_position"], self.keeps_logits)
        if not vectors:
            return logits, None
        first, joint = (self.encoder.pool(captured, inputs[span]) for span in ("span_a", "span_b"))
        if self.args.representation == "joint":
            return logits, PairVectors(first, joint, joint)
        if packed:
            return logits, PairVectors(first, self.encoder.pool(captured, inputs["alone_span"]), joint)
        alone = {"input_ids": inputs["alone_input_ids"], "attention_mask": inputs["alone_attention_mask"]}
        with self.encoder.capture() as captured:
            # One position's logits, unread: the head costs next to nothing, and the model is called as it was given.
            position_logits(model, alone, torch.zeros_like(inputs["answer_position"]), self.keeps_logits)
        return logits, PairVectors(first, self.encoder.pool(captured, inputs["alone_span"]), joint)

    def _stop_on(self, loss: Tensor, inputs: dict[str, Any]) -> None:
        rows = inputs["rows"].tolist() if "rows" in inputs else "unnumbered"
        raise FloatingPointError(
            f"the loss is {float(loss.detach())} at step {self.state.global_step + 1} on rows {rows} of the training "
            "set: training stops before the weights are spoilt. Lower the learning rate, use precision='fp32' or look "
            "at these rows."
        )

    # ---- Clipping, logging ----

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        if not self.clip_value:
            return super()._clip_grad_norm(model)
        # An infinite bound unscales fp16 gradients and measures the norm without clipping.
        norm = self.accelerator.clip_grad_norm_(model.parameters(), float("inf"))
        # The scaler of fp16 skips such a step by itself; clipping by value would leave NaN in the weights.
        if self.accelerator.scaler is None and not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient's norm is {float(norm)} at step {self.state.global_step + 1}: training stops before "
                "the weights are spoilt. Lower the "
                "learning rate or use precision='fp32'."
            )
        torch.nn.utils.clip_grad_value_(model.parameters(), self.clip_value)
        return norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # Trainer skips clipping where max_grad_norm is 0, which says nothing about clipping by value.
        if grad_norm is None and self.clip_value:
            grad_norm = self._clip_grad_norm(model)
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms and the dropped shares to the training log."""
        if "loss" in logs:
            logs |= {name: round(value, 6) for name, value in self.loss_log.flush(self.accelerator).items()}
        super().log(logs, start_time)

    # ---- Data ----

    def _get_dataloader(  # type: ignore[override]
        self, dataset: Any, description: str, batch_size: int, **options: Any
    ) -> DataLoader:
        """Training drops the short last batch, whose contrast would be another one; evaluation keeps every row."""
        training = description == "Training"
        keep = self.args.dataloader_drop_last, self.data_collator
        if not training:
            dataset = self._to_score(dataset, description)
            if self.teacher is not None:
                self._score_with_teacher([dataset])
        elif self.teacher is None:  # the answer alone is trained; evaluation still reports the similarity
            self.data_collator = replace(self.data_collator, encode_alone=False)
        self.args.dataloader_drop_last = training
        try:
            return super()._get_dataloader(dataset, description, batch_size, **options)
        finally:
            self.args.dataloader_drop_last, self.data_collator = keep

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler:
        # Trainer would group evaluation by length too, where training is, and so give scores in another order.
        return SequentialSampler(eval_dataset)

    # ---- Evaluation ----

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """(loss, (answer log-odds (B,), similarity (B,)), labels (B,)): never the logits of the vocabulary."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, scores = self.compute_loss(model, inputs, return_outputs=True)
        return (loss.detach(), None, None) if prediction_loss_only else (loss.detach(), scores, inputs["labels"])

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in Trainer, with the mean of each loss term among the metrics."""
        training, self.loss_log = self.loss_log, LossLog()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        terms = self.loss_log.flush(self.accelerator, f"{metric_key_prefix}_")
        self.loss_log = training
        parts = self._eval_parts()
        if self.is_in_train and parts and dataloader.dataset is parts[0] and output.predictions is not None:
            scores: Any = output.predictions
            if np.isfinite(scores).all():
                self._fit(scores[0], scores[1], parts[0])  # so that a checkpoint of this step carries its score
        return output._replace(metrics={**(output.metrics or {}), **terms})

    def score_pairs(self, dataset: datasets.Dataset) -> tuple[np.ndarray, np.ndarray]:
        """(answer log-odds (n,), similarity (n,)) of each pair, in order; pairs of like length share a batch."""
        dataset = self._to_score(dataset, "score_pairs")
        lengths = [len(a) + len(b) for a, b in zip(dataset["text_a"], dataset["text_b"], strict=True)]
        order = np.argsort(lengths, kind="stable")
        loader = self.get_test_dataloader(dataset.select(order))
        # Not predict(), which gives no scores under prediction_loss_only.
        predictions: Any = self.evaluation_loop(loader, "Scoring", False, metric_key_prefix="score").predictions
        scores = np.empty((2, len(order)))
        scores[:, order] = np.stack(predictions)
        return scores[0], scores[1]

    def fit_match_score(self, dataset: datasets.Dataset | None = None) -> MatchScore:
        """Fit thresholds and the combination of both scores on `dataset` (the evaluation set by default)."""
        if dataset is None and not self._eval_parts():
            raise ValueError(
                "a match score is fitted on held-out pairs: give a data set here, or the trainer an eval_dataset."
            )
        dataset = self._eval_parts()[0] if dataset is None else self._to_score(dataset, "fit_match_score")
        return self._fit(*self.score_pairs(dataset), dataset)

    def _fit(self, answer: np.ndarray, similarity: np.ndarray, dataset: datasets.Dataset) -> MatchScore:
        self.fitted_scores = (answer, similarity)
        self.match_score = MatchScore.fit(
            answer, similarity, np.asarray(dataset["label"]), cast(ScoreKind, self.args.score)
        )
        self.scored_step = self.state.global_step
        return self.match_score

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as Trainer does, then fit the match score on the evaluation set, if there is one."""
        result = super().train(*args, **kwargs)
        if self._eval_parts():
            self.fit_match_score()
        return result


def pair_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Metrics of the answer at its natural threshold; AUC and average precision of the similarity, prefixed."""
    predictions: Any = prediction.predictions
    answer, similarity = predictions
    metric = PairMatching()
    result = metric.compute(predictions=answer, references=prediction.label_ids, threshold=0.0)
    ranked = metric.compute(predictions=similarity, references=prediction.label_ids, threshold=None)
    return result | {f"similarity_{name}": ranked[name] for name in ("roc_auc", "average_precision")}


def _log_odds(logits: Tensor, answer_ids: tuple[int, int]) -> Tensor:
    no_id, yes_id = answer_ids
    return logits[:, yes_id].float() - logits[:, no_id].float()
