"""FlippedDistillationTrainer: a transformers Trainer whose loss is the answer, the teacher's similarities and a
margin-aware contrast.

One file, though long: the order of a step is read in one place; what stands alone is in the files beside it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from peft import LoraConfig, PeftModel
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    TrainerCallback,
    set_seed,
)

from ..data.keys import KnownMatches
from ..data.streaming import validate_stream
from ..data.validation import PairColumns, validate_pairs
from ..losses.base import own_pairs
from ..losses.build import build_loss
from ..losses.flipped import SimilarityTerms
from ..prompts.pair_prompt import PairPrompt
from ..students.answer_head import accepts_logits_to_keep, keep_head_precision, log_odds
from ..students.base_weights import BaseWeights
from ..students.loading import check_positions, load_tokenizer, padding_id
from ..students.lora_encoder import LoraEncoder
from ..teachers.base import Teacher
from ..teachers.calibration import PlattCalibration
from ..utils.angles import paired_cosines
from ..utils.devices import use_cpu_threads
from .clipping import ValueClippingTrainer, resolve_clipping
from .collator import TeacherScoringCollator
from .config import FlippedDistillationConfig
from .encoder_start import EncoderStart, distinct_keys, run_on, start_encoder
from .gradient_cache import Part, cached_backward
from .learning_rates import set_rate_of_b
from .loss_log import LossLog
from .pair_evaluation import PairDatasets, PairScoringTrainer, pair_metrics
from .pair_forward import PairForward, PairVectors
from .processes import check_distributed
from .progress import PairProgress
from .row_gather import RowGather
from .run_checks import (
    check_args,
    check_batches,
    check_cached,
    check_contrast,
    check_optimizer,
    check_prompt,
    check_without_steps,
)
from .setup import (
    build_collator,
    check_tokens,
    name_of,
    prepare_student,
    prepare_teacher,
    speed_up_student,
    starts_from_teacher,
    with_learning_rate,
)
from .streams import check_first_step, check_streamed
from .teacher_targets import TeacherSignal, TeacherTargets

logger = logging.getLogger(__name__)


class FlippedDistillationTrainer(PairScoringTrainer, ValueClippingTrainer):
    """Teaches a large language model to match text by learning from a small expert (arXiv 2507.05617).

    Everything of [`transformers.Trainer`] works as usual: callbacks, resume, evaluation strategies,
    load_best_model_at_end, compute_metrics. `trainer.model` is the PeftModel itself; the teacher is run once before
    training and stays outside the module tree.

    Args:
        model: the student: a Hub name, a folder or a GGUF file, a causal language model, or a PeftModel with a
            trainable LoRA adapter named "default".
        teacher: a Hub name or folder, a SentenceTransformer, a CrossEncoder, or a `Teacher` of your own. None
            where no weight asks for one (plain fine-tuning).
        args: settings; None takes all defaults.
        train_dataset: pairs with text_a, text_b (non-empty str) and label (0 or 1), at least one global batch. A
            stream (`datasets.IterableDataset`) needs max_steps and an eval_dataset; the teacher scores its texts as
            they come, and of known matches only a batch's own are known.
        eval_dataset: held-out pairs, or several by name. The teacher is calibrated and match scores are fitted on (the
            first of) them; without them the teacher is calibrated on the training pairs and no match score is fitted
            (our reading: the paper compares raw scores with its threshold).
        processing_class: the student's tokenizer; loaded by `model`'s name if not given.
        peft_config: LoRA settings for a student without adapter; by default rank 32, alpha 64, dropout 0.05 on all
            linear layers.
        prompt: a PairPrompt; by default the preset of `args.prompt`.
        columns: names of the columns in the data sets, where they are not text_a, text_b, label.
        unlabelled_texts: texts of the field beside the pairs, from which A starts too (see `encoder_start`).
        compute_metrics: takes an EvalPrediction with predictions = (answer log-odds (n,), similarity (n,)) and
            label_ids (n,). By default F1, precision, recall, accuracy (natural threshold), AUC and average precision
            of the answer and, prefixed, of the similarity.
        callbacks: as in Trainer.
        optimizers: as in Trainer.

    Raises:
        ValueError: unusable data, student, teacher or settings; the message names value, rule and remedy. Nothing has
            been trained then.
        TypeError: `unlabelled_texts` is one text, not several.

    Examples:
        `student` and `teacher_folder` are folders or Hub ids. Without bars, Trainer prints its logs:

        >>> rows = [("where is my card", "my card is late", 1), ("cancel the loan", "where is my cash", 0)] * 4
        >>> pairs = datasets.Dataset.from_list([dict(zip(("text_a", "text_b", "label"), row)) for row in rows])
        >>> settings = FlippedDistillationConfig(
        ...     output_dir=folder / "run", max_steps=2, per_device_train_batch_size=4, disable_tqdm=True
        ... )
        >>> trainer = FlippedDistillationTrainer(student, teacher_folder, settings, pairs, eval_dataset=pairs)
        >>> result = trainer.train()
        {'loss': ..., 'loss_sup': ..., 'loss_dist': ..., 'loss_mcl': ..., 'epoch': '1'}
        {'train_runtime': ..., 'train_loss': ..., 'epoch': '1'}
        >>> result.global_step
        2
        >>> answer, similarity = trainer.score_pairs(pairs)  # log-odds, and cosines
        >>> answer.shape, similarity.shape
        ((8,), (8,))
        >>> trainer.save_model()  # into output_dir, from which FlippedMatcher loads it
        >>> (folder / "run" / "adapter_model.safetensors").exists()
        True
    """

    # The loss is a mean over the micro-batch; Trainer then divides by the accumulation steps.
    loss_is_scaled_for_ga = False
    # Narrower than in Trainer.
    model: PeftModel
    args: FlippedDistillationConfig
    data_collator: TeacherScoringCollator
    processing_class: PreTrainedTokenizerBase

    def __init__(
        self,
        model: str | os.PathLike[str] | PreTrainedModel | PeftModel,
        teacher: str | os.PathLike[str] | SentenceTransformer | CrossEncoder | Teacher | None = None,
        args: FlippedDistillationConfig | None = None,
        train_dataset: datasets.Dataset | datasets.IterableDataset | None = None,
        eval_dataset: PairDatasets = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: LoraConfig | None = None,
        *,
        prompt: PairPrompt | None = None,
        columns: PairColumns | None = None,
        unlabelled_texts: Sequence[str] = (),
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ) -> None:
        args = FlippedDistillationConfig() if args is None else args
        unlabelled_texts = unlabelled_texts if isinstance(unlabelled_texts, str) else list(unlabelled_texts)
        check_args(args, peft_config, prompt, compute_metrics, unlabelled_texts)
        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        if args.device.type == "cpu":
            use_cpu_threads(args.cpu_threads)
        self.columns = columns
        train_dataset = self._checked(train_dataset, "train", numbered=True)
        eval_dataset = self._checked(eval_dataset, "validation")
        if isinstance(train_dataset, datasets.Dataset):
            check_batches(len(train_dataset), args)

        set_seed(args.seed)  # A's random start belongs to the seed
        tokenizer = processing_class or load_tokenizer(name_of(model))
        student = prepare_student(model, peft_config, args)
        args = with_learning_rate(args, student)
        self._prepare_reading(student, tokenizer, prompt, args)
        self.teacher = prepare_teacher(teacher, args)
        texts_known = isinstance(train_dataset, datasets.Dataset) or len(unlabelled_texts) > 0
        continued = isinstance(model, PeftModel)
        starts = starts_from_teacher(args, student, self.encoder, self.teacher, continued, peft_config, texts_known)
        if len(unlabelled_texts) and not starts:
            logger.warning(
                "%d unlabelled_texts are not read: A does not start from the teacher", len(unlabelled_texts)
            )
        check_without_steps(args, starts or continued)
        if isinstance(train_dataset, datasets.IterableDataset):
            check_streamed(args, bool(eval_dataset) and self.teacher is not None)
        matrix = self._prepare_losses(train_dataset, args)
        super().__init__(
            model=student,
            args=args,
            data_collator=build_collator(self.prompt, student, padding_id(tokenizer), matrix),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            compute_metrics=compute_metrics or pair_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # Nothing here is divided by a number of tokens, which Trainer would gather: of ranks whose streams have unlike
        # numbers of batches, one would wait for ever.
        self.model_accepts_loss_kwargs = False
        check_optimizer(optimizers[0], student)
        self._show_named_bars()
        check_distributed(args, self.accelerator)
        check_cached(args, self.accelerator)
        self.clip_value = resolve_clipping(args, self.accelerator)
        self._ask_teacher()
        self.encoder_start = self._start_encoder(starts, unlabelled_texts)
        if isinstance(teacher, str | os.PathLike) and not isinstance(train_dataset, datasets.IterableDataset):
            if self.teacher is not None:
                self.teacher.rest()  # loaded here, and what it has to say is cached

    # ---- Construction ----

    def _prepare_reading(
        self,
        student: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: PairPrompt | None,
        args: FlippedDistillationConfig,
    ) -> None:
        """How pairs become tokens, and what of the student's forward is read."""
        self.base_weights = BaseWeights.of(student)
        speed_up_student(student, args.device)
        if prompt is not None:
            check_prompt(prompt, tokenizer)
        self.prompt = prompt or PairPrompt.from_preset(
            tokenizer, args.prompt, max_length=args.max_length, instruction=args.instruction
        )
        check_tokens(student, tokenizer, self.prompt)
        check_positions(student, self.prompt.max_length)
        self.encoder = LoraEncoder.from_model(
            student,
            layers=args.encoder_layers,
            modules=args.encoder_modules,
            pooling=args.encoder_pooling,  # type: ignore[arg-type]
        )
        keeps_logits = accepts_logits_to_keep(student)
        if keeps_logits:
            keep_head_precision(student)
        self.reader = PairForward(self.encoder, args.representation, keeps_logits, student.dtype)

    def _prepare_losses(self, train_dataset: Any, args: FlippedDistillationConfig) -> bool:
        """The loss, the teacher's part in it, and what is kept of both; whether every two texts are compared."""
        # Off the diagonal there is something to compare only if text_b has not read text_a and the teacher can score
        # any two texts.
        matrix = args.representation != "joint" and (self.teacher is None or self.teacher.has_vectors)
        known = KnownMatches.from_pairs(train_dataset) if isinstance(train_dataset, datasets.Dataset) else None
        self.signal = None if self.teacher is None else TeacherSignal(self.teacher, args, matrix, known)
        self.loss = build_loss(vars(args))
        self.loss_log = LossLog()
        self.match_score = None
        self.scored_step = None
        self.fitted_scores: tuple[np.ndarray, np.ndarray] | None = None  # what the match score was fitted on
        return matrix

    def _show_named_bars(self) -> None:
        for callback in list(self.callback_handler.callbacks):
            if type(callback) is ProgressCallback:  # the default one, no notebook's and no user's
                self.remove_callback(callback)
                self.add_callback(PairProgress)

    def _ask_teacher(self) -> None:
        """Score all texts that are known before training, and calibrate the scores."""
        whole = [part for part in (self.train_dataset, *self._eval_parts()) if isinstance(part, datasets.Dataset)]
        if self.signal is None or not whole:
            return
        self._score_with_teacher(whole)
        # The teacher may have been trained on the training pairs: P is fitted on held-out ones if there are any.
        self.signal.calibrate((self._eval_parts() or whole)[0], whole[0])

    def _checked(self, dataset: Any, name: str, numbered: bool = False, both: bool = True) -> Any:
        if not numbered and isinstance(dataset, Mapping):
            # The first of several is what scores are fitted on; the others may be of one class, as hard negatives are.
            names = list(dataset)
            return {part: self._checked(dataset[part], part, both=part == names[0]) for part in names}
        if numbered and isinstance(dataset, datasets.IterableDataset):
            return validate_stream(dataset, self.columns, name)
        if not isinstance(dataset, datasets.Dataset):
            if dataset is None:
                return None
            raise ValueError(
                f"the {name} data set is a {type(dataset).__name__}: give a datasets.Dataset with text_a, text_b, "
                "label."
            )
        dataset = validate_pairs(dataset, columns=self.columns, name=name, require_both_classes=both)
        if not numbered:
            return dataset
        # Row numbers for error messages; characters stand for tokens in train_sampling_strategy="group_by_length".
        lengths = [len(a) + len(b) for a, b in zip(dataset["text_a"], dataset["text_b"], strict=True)]
        return dataset.add_column("row", np.arange(len(dataset))).add_column("length", lengths)

    # ---- Teacher ----

    @property
    def calibration(self) -> PlattCalibration | None:
        """From the teacher's T to its match probability P."""
        return self.signal.calibration if self.signal is not None else None

    @property
    def teacher_report(self) -> dict[str, float | int]:
        """How the teacher agrees with the labels of the training pairs."""
        return self.signal.report if self.signal is not None else {}

    def _score_with_teacher(self, parts: list[datasets.Dataset]) -> None:
        assert self.signal is not None
        self.data_collator.teacher_scores = self.signal.score(parts)

    def _start_encoder(self, wanted: bool, unlabelled_texts: Sequence[str]) -> EncoderStart | None:
        """Start A from the teacher, the main process first; the others then read what it has kept."""
        if not wanted:
            return None
        assert self.signal is not None and self.teacher is not None
        pairs = self.train_dataset if isinstance(self.train_dataset, datasets.Dataset) else None
        distinct, rank = len(distinct_keys(unlabelled_texts, pairs)), self.encoder.modules[0].rank
        if self.args.encoder_start == "auto" and distinct < rank:
            logger.warning("A starts at random: a rank of %d wants as many texts, there are %d", rank, distinct)
            check_without_steps(self.args, started=False)
            return None
        with self.args.main_process_first(local=False, desc="the start of A"), run_on(self.model, self.args.device):
            return start_encoder(
                self.model,
                self.encoder,
                self.prompt,
                self.teacher,
                unlabelled_texts,
                pairs,
                pad_id=padding_id(self.processing_class),
                cache_dir=self.signal.cache_dir,
                teacher_batch_size=self.args.teacher_batch_size,
                show_progress=not self.args.disable_tqdm and self.args.process_index == 0,
            )

    def teacher_similarity(self, dataset: datasets.Dataset) -> np.ndarray:
        """The teacher's T of each pair; texts it has not seen are scored now and cached.

        Args:
            dataset: n pairs with text_a, text_b and label.

        Returns:
            T, (n,) in [-1, 1].

        Raises:
            ValueError: there is no teacher, a column is missing, or a row is no pair.
        """
        if self.signal is None:
            raise ValueError(
                "this trainer has no teacher, for which no weight of its settings asks (plain fine-tuning)."
            )
        dataset = self._to_score(dataset, "teacher_similarity")
        self._score_with_teacher([dataset])
        return self.signal.similarity(dataset)

    # ---- Loss ----

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one micro-batch of B pairs: w_sup L_sup + w_dist L_dist + w_mcl L_MCL (arXiv 2507.05617).

        Each term is a mean (its divisor stands in its class), over the pairs of all ranks where they are gathered. The
        terms are added to the log.

        Args:
            model: the student, wrapped or not.
            inputs: a batch of `TeacherScoringCollator`, on the student's device, with labels (B,).
            return_outputs: also give both scores of each pair.
            num_items_in_batch: of Trainer, which divides by it where a loss is a sum; not used.

        Returns:
            The loss, a scalar with gradient; with `return_outputs` (loss, (answer, similarity)): the answer's
            log-odds (B,), logit(yes) - logit(no), and the cosine of both texts (B,) in [-1, 1].

        Raises:
            FloatingPointError: the loss of a training batch is not finite; the message names step and rows.
        """
        logits, vectors = self.reader(model, inputs, self.signal is not None or return_outputs)
        gather = self._gather(model, inputs)
        targets = self._targets(inputs, gather)
        probability = self._own_probability(targets, gather)
        sup = self.loss.sup(logits, inputs["labels"], self.prompt.answer_ids, probability)
        if targets is None:
            loss = self.loss.weights[0] * sup
        else:
            assert vectors is not None
            if gather is not None:
                # The average over the ranks is then the mean over all pairs, as of the two other terms.
                sup = sup * gather.local_share
                vectors = PairVectors.of(gather(vectors.stacked()))
            output = self.loss.compose(sup, self._compare(vectors, targets))
            loss = output.total
            self.loss_log.add(output, targets.labels)
        if model.training:
            self._check_finite(loss, inputs)
        if not return_outputs:
            return loss
        assert vectors is not None and vectors.alone_b is not None
        return loss, (log_odds(logits, self.prompt.answer_ids), paired_cosines(vectors.text_a, vectors.alone_b))

    def _gather(self, model: nn.Module, inputs: dict[str, Any]) -> RowGather | None:
        """Joins the ranks' rows in training, where that is wanted and there are several."""
        if not (model.training and self.args.gather_across_devices and self.args.world_size > 1):
            return None
        return RowGather(len(inputs["labels"]), inputs["labels"].device)

    def _targets(self, inputs: dict[str, Any], gather: RowGather | None) -> TeacherTargets | None:
        return self.signal.targets(inputs, gather) if self.signal is not None else None

    def _own_probability(self, targets: TeacherTargets | None, gather: RowGather | None) -> Tensor | None:
        """The teacher's P of this rank's pairs, (B,)."""
        if targets is None:
            return None
        probability = own_pairs(targets.probability)
        return probability if gather is None else gather.own(probability)

    def _compare(self, vectors: PairVectors, targets: TeacherTargets) -> SimilarityTerms:
        return self.loss.compare(
            targets.labels,
            vectors.text_a,
            vectors.text_b,
            targets.similarity,
            targets.probability,
            targets.excluded,
            vectors.joint_b,
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in Trainer; B has a rate of its own (`loraplus_lr_ratio`). An optimizer that was given stays."""
        is_own = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if self.args.loraplus_lr_ratio != 1 and not is_own:
            set_rate_of_b(optimizer, self.model if model is None else model, self.args.loraplus_lr_ratio)
        return optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As in Trainer; a batch in mini-batches is read in parts by the gradient cache."""
        with self._fast_products():
            if "mini_batches" in inputs:
                return self._training_step_in_parts(model, inputs)
            return super().training_step(model, inputs, num_items_in_batch)

    def _training_step_in_parts(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        model.train()
        into_training = getattr(self.optimizer, "train", None)  # of schedule-free optimizers
        if callable(into_training):
            into_training()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self._cached_step(model, inputs) / self.current_gradient_accumulation_steps
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        return loss

    def _cached_step(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Backward through the same loss as `compute_loss`, a mini-batch's graph at a time; returns its value."""
        gather = self._gather(model, inputs)
        targets = self._targets(inputs, gather)
        pairs = len(inputs["labels"])
        share = 1.0 if gather is None or targets is None else gather.local_share
        sup = torch.zeros((), device=inputs["labels"].device)
        comparison: SimilarityTerms | None = None
        parts: list[Part] = inputs["mini_batches"]
        probability = self._own_probability(targets, gather)
        if probability is not None:
            split = probability.split([len(part["labels"]) for part in parts])
            parts = [{**part, "probability": own} for part, own in zip(parts, split, strict=True)]

        def compared(stacked: Tensor) -> Tensor:
            nonlocal comparison
            assert targets is not None
            vectors = PairVectors.of(stacked if gather is None else gather(stacked))
            comparison = self._compare(vectors, targets)
            self._check_finite(self.loss.weighted(comparison), inputs)
            return self.loss.weighted(comparison)

        def answered(logits: Tensor, part: Part) -> Tensor:
            nonlocal sup
            labels = part["labels"]
            loss = self.loss.sup(logits, labels, self.prompt.answer_ids, part.get("probability"))
            loss = loss * (share * len(labels) / pairs)
            sup = sup + loss.detach()
            self._check_finite(loss, part)
            return self.loss.weights[0] * loss

        cached_backward(
            parts,
            read=lambda part: self.reader(model, part, targets is not None),
            compared=None if targets is None else compared,
            answered=answered,
            backward=lambda loss: self.accelerator.backward(loss / self.current_gradient_accumulation_steps),
            no_sync=lambda: self.accelerator.no_sync(model),
            devices=sorted({p.device for p in model.parameters() if p.device.type != "cpu"}, key=str),
        )
        if targets is None or comparison is None:
            return self.loss.weights[0] * sup
        output = self.loss.compose(sup, comparison)
        self.loss_log.add(output, targets.labels)
        return output.total.detach()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As in Trainer; mini-batches count one by one."""
        count = super().floating_point_ops
        return sum(count(part) for part in inputs.get("mini_batches", [inputs]))

    def _check_finite(self, loss: Tensor, inputs: dict[str, Any]) -> None:
        if torch.isfinite(loss):
            return
        rows = inputs["rows"].tolist() if "rows" in inputs else "unnumbered"
        raise FloatingPointError(
            f"the loss is {float(loss.detach())} at step {self.state.global_step + 1} on rows {rows} of the training "
            "set: training stops before the weights are spoilt. Lower the learning rate, use precision='fp32' "
            "with a student in float32, or look at these rows."
        )

    # ---- Logging ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms and the dropped shares to the training log."""
        if "loss" in logs:
            logs |= {name: round(value, 6) for name, value in self.loss_log.flush(self.accelerator).items()}
        super().log(logs, start_time)

    # ---- Data ----

    def get_train_dataloader(self) -> DataLoader:
        """Batches of training: without the short last one, whose contrast would be another."""
        # Of plain fine-tuning the answer alone is trained; evaluation still reports the similarity of texts alone.
        alone = self.args.representation != "joint" and self.signal is not None
        size = self.args.mini_batch_size
        size = size if size is not None and size < self.args.per_device_train_batch_size else None
        collator = replace(self.data_collator, encode_alone=alone, mini_batch_size=size)
        check_contrast(self.args, self._train_batch_size)  # auto_find_batch_size makes it smaller
        if isinstance(self.train_dataset, datasets.IterableDataset):
            collator = replace(collator, teacher_scores=None, hand_on_texts=self.signal is not None)
        with self._loading(collator, self.args.train_sampling_strategy, drop_last=True):
            return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: str | datasets.Dataset | None = None) -> DataLoader:
        """Batches of evaluation: every row, in order.

        Args:
            eval_dataset: pairs, or the name of one of the trainer's sets; None takes the trainer's own.
        """
        if isinstance(eval_dataset, datasets.Dataset):
            if eval_dataset is not self.eval_dataset:
                # Trainer keeps loaders of persistent workers, and would take that of its own set for another one's.
                return self._checked_loader(self._to_score(eval_dataset, "Evaluation"))
            eval_dataset = None
        elif eval_dataset is not None and not isinstance(eval_dataset, str):
            return self._checked_loader(self._to_score(eval_dataset, "Evaluation"))  # which says what it is
        own: Any = self.eval_dataset
        with self._scoring(own if eval_dataset is None else own[eval_dataset]):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: datasets.Dataset) -> DataLoader:
        """Batches of prediction: every row, in order.

        Args:
            test_dataset: pairs.
        """
        return self._checked_loader(self._to_score(test_dataset, "test"))

    def _checked_loader(self, dataset: datasets.Dataset) -> DataLoader:
        args, keep = self.args, self.args.dataloader_persistent_workers
        with self._scoring(dataset):
            args.dataloader_persistent_workers = False  # it is read once: its workers would stay to the end
            try:
                return super().get_test_dataloader(dataset)
            finally:
                args.dataloader_persistent_workers = keep

    def _scoring(self, dataset: Any) -> AbstractContextManager[None]:
        """Inside, loaders of `dataset` give the teacher's scores and keep every row in its place."""
        if self.signal is not None and dataset is not None:
            self._score_with_teacher([dataset])
        # Trainer would group evaluation by length too, where training is, and so give scores in another order.
        return self._loading(self.data_collator, "sequential", drop_last=False)

    @contextmanager
    def _loading(self, collator: TeacherScoringCollator, sampling: str, drop_last: bool) -> Iterator[None]:
        """Inside, Trainer makes loaders of this kind."""
        args, keep = self.args, (self.data_collator, self.args.train_sampling_strategy, self.args.dataloader_drop_last)
        self.data_collator, args.train_sampling_strategy, args.dataloader_drop_last = collator, sampling, drop_last
        try:
            yield
        finally:
            self.data_collator, args.train_sampling_strategy, args.dataloader_drop_last = keep

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer; texts of a streamed set are scored here, in the main process.

        What is left at the end of a stream's pass and fills no step is not read: Trainer would add the gradient of a
        group without a step to the next one.
        """
        batches, items = super().get_batch_samples(*args, **kwargs)
        if isinstance(self.train_dataset, datasets.IterableDataset):
            batches = batches if len(batches) == self.args.gradient_accumulation_steps else []
            check_first_step(batches, self.state.global_step, self.args)
        for batch in batches:
            if self.signal is not None and "texts_a" in batch:
                self.signal.complete(batch)
        return batches, items

    def before_checkpoint(self) -> None:
        """A resumed run reads the scores that this one has read so far."""
        if self.signal is not None:
            self.signal.flush()
