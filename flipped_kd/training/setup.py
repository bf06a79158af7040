"""What the trainer checks and prepares before anything is trained: student, teacher, loss, batches, clipping."""

from __future__ import annotations

import copy
import logging
import os
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.quantization_config import QuantizationMethod

from ..prompts.pair_prompt import PairPrompt
from ..students.adapter_checks import ADAPTER, check_adapter
from ..students.attention import speed_up_attention
from ..students.cpu_dropout import speed_up_dropout
from ..students.encoder_modules import choose_modules
from ..students.loading import check_causal, load_student
from ..students.lora import add_adapter, default_lora, keep_input_precision, with_ranks
from ..students.lora_encoder import LoraEncoder
from ..students.probing import is_sharded, unwrapped
from ..students.size import learning_rate_for
from ..students.vocabulary import check_not_resized, check_vocabulary
from ..teachers.base import Teacher
from ..teachers.loading import load_teacher
from ..utils.devices import weights_dtype
from .collator import TeacherScoringCollator
from .config import PLAIN, FlippedDistillationConfig
from .encoder_start import why_not_started
from .packing import find_layout

logger = logging.getLogger(__name__)


def prepare_student(
    model: str | PreTrainedModel | PeftModel, peft_config: LoraConfig | None, args: FlippedDistillationConfig
) -> PeftModel:
    """The student with a trainable LoRA adapter: a new one, unless it brings its own.

    One given by name is loaded in the dtype that device and precision of `args` ask for.

    Raises:
        ValueError: the student or its adapter is none that can be trained (see `adapter_checks`).
    """
    if isinstance(model, PeftModel):
        if peft_config is not None:
            raise ValueError("the student already has an adapter: give peft_config or a PeftModel, not both.")
        if args.encoder_rank is not None:
            raise ValueError(
                f"encoder_rank={args.encoder_rank}: the student already has an adapter, whose ranks stay. Leave it "
                "out."
            )
        check_adapter(model)
        base = unwrapped(model)
        check_not_resized(base)
        check_causal(base)
        # An earlier trainer may have put its own precision around the forward pass.
        extract_model_from_parallel(model, keep_fp32_wrapper=False)
        model._is_accelerate_prepared = False  # type: ignore[assignment]
        return model
    if getattr(model, "quantization_method", None) == QuantizationMethod.GGUF:
        raise ValueError(
            "the student was read from GGUF by transformers, which calls it quantised and will not save it: give the "
            "name of the file instead (FILE.gguf, FOLDER/FILE.gguf or owner/name:FILE.gguf)."
        )
    if isinstance(model, str):
        model = load_student(model, dtype=weights_dtype(args.device, args.precision))
    elif isinstance(model, PreTrainedModel):
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise ValueError(
                "the student carries the adapter of an earlier trainer: load the model afresh, or give the PeftModel "
                "itself."
            )
        check_not_resized(model)
        check_causal(model)
    else:
        raise ValueError(
            f"student of type {type(model).__name__}: give a name, a causal language model or a PeftModel."
        )
    adapted = add_adapter(model, default_lora() if peft_config is None else peft_config)
    if args.encoder_rank is None:
        return adapted
    modules = choose_modules(adapted, args.encoder_layers, args.encoder_modules, ADAPTER)
    return with_ranks(adapted, {module.name: args.encoder_rank for module in modules})


def check_tokens(student: PeftModel, tokenizer: PreTrainedTokenizerBase, prompt: PairPrompt) -> None:
    """Refuse a tokenizer with more entries than the student has embeddings: the adapter could not be loaded."""
    if not is_sharded(student):
        base = unwrapped(student)
        embedding: Any = base.get_input_embeddings()
        why = "give the model's own tokenizer; or resize the model, save both into one folder, and give that."
        check_vocabulary(embedding.weight.shape[0], tokenizer, prompt, type(base).__name__, why)


def speed_up_student(student: PeftModel, device: torch.device) -> None:
    """Replace what costs much on `device` by what gives the same for less."""
    speed_up_dropout(student)
    keep_input_precision(student)
    if device.type == "cpu":
        speed_up_attention(unwrapped(student))


def prepare_teacher(teacher: Any, args: FlippedDistillationConfig) -> Teacher | None:
    """The teacher, or None where no loss needs one."""
    if not args.distils:
        return None
    if teacher is None:
        asking = " and ".join(f"{name}={getattr(args, name)}" for name in PLAIN if getattr(args, name))
        raise ValueError(f"a teacher is needed for {asking}: give one, or set each to 0 for plain fine-tuning.")
    named = isinstance(teacher, str | os.PathLike)
    prepared = load_teacher(teacher, device=args.device if named else None)
    if not prepared.has_vectors and args.contrast != "pairwise":
        shown = prepared.kind.replace("_", "-")
        raise ValueError(
            f"contrast={args.contrast!r} compares every two texts of a batch, which the {shown} teacher "
            f"{prepared.id!r} cannot score: use contrast='pairwise' or a bi-encoder teacher."
        )
    return prepared


def with_learning_rate(args: FlippedDistillationConfig, student: PeftModel) -> FlippedDistillationConfig:
    """The settings with a learning rate; where they have none, a copy with the one that goes with the student's size.

    Args:
        args: settings.
        student: with its adapter.
    """
    if args.learning_rate is not None:
        return args
    trained, everything = student.get_nb_trainable_parameters()
    weights = everything - trained  # the bare student's, as the recipes count
    args = copy.copy(args)  # the caller's may serve a student of another size
    args.learning_rate = learning_rate_for(weights)
    logger.info("learning rate %g, for a student of %.0f million weights", args.learning_rate, weights / 1e6)
    return args


def starts_from_teacher(
    args: FlippedDistillationConfig,
    student: PeftModel,
    encoder: LoraEncoder,
    teacher: Teacher | None,
    continued: bool,
    peft_config: LoraConfig | None,
    texts_known: bool,
) -> bool:
    """Whether A is to start from the teacher; where it might and does not, the log says why.

    Args:
        args: settings.
        student: with its adapter.
        encoder: whose A would start.
        teacher: as prepared.
        continued: the student came with its adapter.
        peft_config: of a new adapter; None takes the default.
        texts_known: there are texts to start from.

    Raises:
        ValueError: it was asked for, and cannot be.
    """
    if args.encoder_start == "random" or not args.distils:
        return False
    initialised = True if peft_config is None else peft_config.init_lora_weights
    if continued:
        logger.warning(  # other settings give other vectors, and nothing else would tell
            "A stays as the adapter brings it; the encoder reads %d of its modules (encoder_layers=%s, "
            "encoder_modules=%s, encoder_pooling=%s): give what it was trained with",
            *(len(encoder.modules), args.encoder_layers, args.encoder_modules, args.encoder_pooling),
        )
        return False
    if initialised is not True:
        logger.info("A starts as init_lora_weights=%r says, not from the teacher", initialised)
        return False
    assert teacher is not None, "one distils from a teacher"
    if not teacher.has_vectors:
        why: str | None = f"the {teacher.kind.replace('_', '-')} teacher {teacher.id!r} has no vectors of texts"
    elif is_sharded(student):
        why = "no whole weight of the student is here (sharded when it was loaded)"
    elif not texts_known:
        why = "there are no texts before training (a stream): give unlabelled_texts"
    else:
        why = why_not_started(student, encoder, teacher)
    if why is None:
        return True
    if args.encoder_start == "teacher":
        raise ValueError(f"encoder_start='teacher': {why}; or use encoder_start='random'.")
    logger.warning("A starts at random: %s. In short runs most of the gain is in the start from the teacher", why)
    return False


def build_collator(prompt: PairPrompt, student: PeftModel, pad_id: int, matrix: bool) -> TeacherScoringCollator:
    """The collator of scoring; pairs and texts share rows where the student can read them so."""
    return TeacherScoringCollator(
        prompt,
        pad_id,
        matrix=matrix,
        layout=find_layout(unwrapped(student), prompt.max_length),
    )


def name_of(model: Any) -> str:
    """Where the student's tokenizer is found."""
    if isinstance(model, str):
        return model
    name = getattr(model.config, "_name_or_path", "")
    if not name:
        raise ValueError("the student's tokenizer is not known: give processing_class.")
    return name
