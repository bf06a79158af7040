"""Which adapters can be trained, saved, read as an encoder and merged; the others are refused before any training.

The settings are those of peft 0.21. What is supported, and what shows it, is in docs/adapters.md.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, TaskType, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper

ADAPTER = "default"  # PEFT's own name, and the only one that Trainer resumes
# Settings of LoraConfig that are refused when set, and why.
REFUSED = {
    "velora_config": "VeLoRA multiplies by A outside of the module that the encoder reads",
    "monteclora_config": "MonteCLoRA puts noise on A outside of the module that the encoder reads",
    "kasa_config": "KaSA cuts the smallest singular values off the base's weights",
    "alora_invocation_tokens": "an activated LoRA is silent before its tokens, so it reads no text alone",
    "use_qalora": "QA-LoRA pools A's inputs, has no merge, and does nothing unless the base is stored as GPTQ",
    "arrow_config": "Arrow routes between trained adapters and trains none",
    "layer_replication": "replicated layers share one base weight, which can take the merge of one adapter only",
    "megatron_config": "Megatron's parallel layers are no layers of transformers",
}
# Initialisations by the beginning of their names, and why they are refused.
REFUSED_STARTS = {
    **dict.fromkeys(
        ("pissa", "olora", "corda", "loftq", "lora_ga"),
        "it changes the base's weights, so that the adapter would not fit the base that it names",
    ),
    "mica": "it starts A at zero, where all texts have one and the same vector",
}


def check_lora_config(config: PeftConfig, name: str = ADAPTER, *, new: bool = False) -> None:
    """Raise ValueError for settings of an adapter that cannot be trained, saved, read and merged rightly.

    `new`: the adapter is yet to be made from these settings.
    """
    where = "" if name == ADAPTER else f" of the adapter {name!r}"
    if config.peft_type != PeftType.LORA:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise ValueError(
            f"peft_type={kind!r}{where}: only LoRA has the A matrices that are read as an encoder. Give a LoraConfig, "
            "or a PeftModel made with one."
        )
    if config.task_type not in (None, TaskType.CAUSAL_LM):
        raise ValueError(
            f"task_type={getattr(config.task_type, 'value', config.task_type)!r}{where}: the student is a causal "
            "language model. Use task_type='CAUSAL_LM'."
        )
    for setting, reason in REFUSED.items():
        value = getattr(config, setting)
        if value:
            raise ValueError(f"{setting}={value!r}{where}: {reason}. Leave {setting} out.")
    start = getattr(config, "init_lora_weights", True)
    for beginning, reason in REFUSED_STARTS.items():
        if str(start).lower().startswith(beginning):
            raise ValueError(f"init_lora_weights={start!r}{where}: {reason}. Use True, 'gaussian' or 'orthogonal'.")
    if new and start == "eva":
        raise ValueError(
            "init_lora_weights='eva': EVA starts A from data, which a LoraConfig does not bring. Make the PeftModel "
            "with get_peft_model and peft.initialize_lora_eva_weights, and give that."
        )
    if new and config.inference_mode:
        raise ValueError("inference_mode=True would freeze the new adapter: leave it out.")


def check_adapter(model: PeftModel) -> None:
    """Refuse a student whose adapter would be trained in vain, wrongly, or not saved.

    Raises:
        ValueError: the active adapter is not "default" alone; it is frozen, switched off or merged; its settings are
            refused (see `check_lora_config`); a trainable weight is in half precision or belongs to no part of it.
    """
    for name, config in model.peft_config.items():
        check_lora_config(config, name)
    if ADAPTER not in model.peft_config:
        raise ValueError(
            f"the PeftModel's adapters are {sorted(model.peft_config)}: the one that is trained, saved and resumed is "
            "named 'default'. Load it under that name: PeftModel.from_pretrained(base, folder, is_trainable=True)."
        )
    if list(model.active_adapters) != [ADAPTER]:
        raise ValueError(
            f"the active adapters are {list(model.active_adapters)}: 'default', and it alone, is trained and saved. "
            "Call model.set_adapter('default')."
        )
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    for name, layer in layers.items():
        if layer.merged:
            raise ValueError(f"the adapter is merged into {name!r}, so A does not run: call model.unmerge_adapter().")
        if layer.disable_adapters:
            raise ValueError(
                f"the adapter of {name!r} is switched off: call model.base_model.enable_adapter_layers()."
            )
    _check_modules_to_save(model)
    _check_bias(layers)
    _check_trainable(model)


def _check_modules_to_save(model: PeftModel) -> None:
    """PEFT passes over a name that matches nothing."""
    wrapped = [name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    wanted: Any = model.peft_config[ADAPTER]
    absent = [end for end in wanted.modules_to_save or () if not any(name.endswith(end) for name in wrapped)]
    if absent:
        raise ValueError(
            f"modules_to_save={list(wanted.modules_to_save)}: {absent} matches no module of "
            f"{type(model.get_base_model()).__name__}. Give endings of names such as 'lm_head', or leave it out."
        )


def _check_bias(layers: dict[str, BaseTunerLayer]) -> None:
    """A bias of B can be merged into a layer that has a bias itself."""
    bare = sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, layer in layers.items()
            if isinstance(layer, LoraLayer)
            and layer.lora_bias.get(ADAPTER)
            and getattr(layer.get_base_layer(), "bias", None) is None
        }
    )
    if bare:
        raise ValueError(
            f"lora_bias=True: {bare} have no bias of their own that B's could be merged into. Leave lora_bias out, or "
            "name in target_modules only layers that have one."
        )


def _check_trainable(model: PeftModel) -> None:
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not trainable:
        raise ValueError(
            "every weight of the PeftModel is frozen: load it with PeftModel.from_pretrained(..., is_trainable=True)."
        )
    saved = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    held = {tensor.untyped_storage().data_ptr() for tensor in saved.values()}
    # Weights that are not here (sharded, or on the meta device) have no address to go by.
    loose = sorted(name for name, weight in trainable.items() if weight.untyped_storage().data_ptr() not in held | {0})
    if loose:
        raise ValueError(
            f"{len(loose)} trainable weights, such as {loose[0]!r}, are no part of the adapter 'default' and would "
            "not be saved: freeze them (requires_grad_(False)), or name their modules in modules_to_save."
        )
    half = sorted(name for name, weight in trainable.items() if weight.dtype in (torch.bfloat16, torch.float16))
    if half:
        raise ValueError(
            f"{len(half)} trainable weights, such as {half[0]!r}, are {trainable[half[0]].dtype}, which rounds an "
            "optimizer's small steps away. Make the adapter with autocast_adapter_dtype=True (PEFT's default); "
            "modules_to_save and bias train weights of the student's own dtype, so load it with dtype float32 then "
            "(--student_dtype float32; --precision bf16 computes in bfloat16 all the same)."
        )
