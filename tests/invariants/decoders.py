"""Random tiny decoders, one for each row of docs/decoders.md: two layers, the test tokenizer's vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY = 500
POSITIONS = 256
# Tokens of a window in the runs, fewer than their rows have.
WINDOW = 24

SIZE: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# Weights large enough for the scores of pairs to differ.
SPREAD: dict[str, Any] = {"initializer_range": 0.2}
BASIC: dict[str, Any] = {**SIZE, **SPREAD, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT: dict[str, Any] = {**BASIC, "intermediate_size": 48, "max_position_embeddings": POSITIONS}
LLAMA: dict[str, Any] = {**BERT, "num_key_value_heads": 2}
GPT2: dict[str, Any] = {**SIZE, **SPREAD, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}
GEMMA: dict[str, Any] = {**LLAMA, "head_dim": 8, "sliding_window": WINDOW}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT: dict[str, Any] = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
MAMBA: dict[str, Any] = {**SIZE, **SPREAD, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
DELTA: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
TEXT: dict[str, Any] = {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]}
IMAGES: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
    "image_token_index": VOCABULARY - 1,
    "boi_token_index": VOCABULARY - 2,
    "eoi_token_index": VOCABULARY - 3,
}


@dataclass(frozen=True)
class Decoder:
    """One kind of decoder.

    Attributes:
        family: its name in the table.
        kind: its class in transformers.
        options: settings of its configuration.
        note: what is special about it.
        window: the setting that limits how far back some layer sees, if it has one.
        target_modules: what LoRA adapts, where that is not every linear layer.
    """

    family: str
    kind: str
    options: dict[str, Any]
    note: str
    window: str | None = None
    target_modules: str = "all-linear"

    def build(self, **changes: Any) -> PreTrainedModel:
        """A random model of this kind in evaluation mode; `changes` are settings of its configuration."""
        model_class = getattr(transformers, self.kind)
        torch.manual_seed(0)
        return model_class(model_class.config_class(**(self.options | changes))).eval()


DECODERS = (
    Decoder("Qwen2", "Qwen2ForCausalLM", LLAMA, "biases in attention; embeddings tied or not"),
    Decoder(
        "Qwen2 with windows",
        "Qwen2ForCausalLM",
        {**LLAMA, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        "a sliding window in the upper layers",
        window="sliding_window",
    ),
    Decoder("Qwen3", "Qwen3ForCausalLM", {**LLAMA, "head_dim": 16, "tie_word_embeddings": True}, "norms in attention"),
    Decoder("Llama", "LlamaForCausalLM", LLAMA, "of this kind are Yi, TinyLlama, SmolLM, Vicuna and others"),
    Decoder(
        "Mistral",
        "MistralForCausalLM",
        {**LLAMA, "sliding_window": WINDOW},
        "a sliding window in every layer (version 0.1)",
        window="sliding_window",
    ),
    Decoder("Gemma", "GemmaForCausalLM", {**LLAMA, "head_dim": 8}, "scaled embeddings, tied"),
    Decoder("Gemma 2", "Gemma2ForCausalLM", GEMMA, "soft caps, windows in every other layer", window="sliding_window"),
    Decoder("Gemma 3, text", "Gemma3ForCausalLM", TEXT, "windows, two rotary bases", window="sliding_window"),
    Decoder(
        "Gemma 3 with images",
        "Gemma3ForConditionalGeneration",
        {"text_config": TEXT, **IMAGES},
        "LoRA on the text decoder only; merge with `sentence_transformers=False`: CrossEncoder wants the images' "
        "processor",
        window="sliding_window",
    ),
    Decoder("Phi", "PhiForCausalLM", LLAMA, "attention and feed-forward side by side"),
    Decoder("Phi-3", "Phi3ForCausalLM", LLAMA, "one matrix for q, k, v and one for gate, up; so is Phi-4"),
    Decoder("GLM", "GlmForCausalLM", {**LLAMA, "head_dim": 8}, "one matrix for gate, up; rotates half of a head"),
    Decoder("GLM-4", "Glm4ForCausalLM", {**LLAMA, "head_dim": 8}, "one matrix for gate, up; more norms"),
    Decoder("StableLM", "StableLmForCausalLM", LLAMA, "rotates a part of a head"),
    Decoder("OLMo 2", "Olmo2ForCausalLM", LLAMA, "norms after attention and feed-forward"),
    Decoder("SmolLM3", "SmolLM3ForCausalLM", LLAMA, "layers without positions"),
    Decoder("Granite", "GraniteForCausalLM", {**LLAMA, "tie_word_embeddings": True}, "scaled residuals and logits"),
    Decoder("Starcoder2", "Starcoder2ForCausalLM", LLAMA, "plain feed-forward, biases"),
    Decoder("GPT-2", "GPT2LMHeadModel", GPT2, "`Conv1D` in place of linear layers, one for q, k, v; learnt positions"),
    Decoder(
        "GPT-Neo",
        "GPTNeoForCausalLM",
        {
            **SIZE,
            **SPREAD,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
            "max_position_embeddings": POSITIONS,
        },
        "windows by a mask of its own, which shared rows must fit; learnt positions",
        window="window_size",
    ),
    Decoder("GPT-J", "GPTJForCausalLM", {**GPT2, "rotary_dim": 4}, "attention and feed-forward side by side"),
    Decoder("GPT-NeoX", "GPTNeoXForCausalLM", BERT, "one matrix for q, k, v; so is Pythia"),
    Decoder(
        "OPT",
        "OPTForCausalLM",
        {
            **SIZE,
            "init_std": 0.2,
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": POSITIONS,
        },
        "positions counted from the mask; the encoder leaves out fc1 and fc2, which read a flattened batch",
    ),
    Decoder("BLOOM", "BloomForCausalLM", {**SIZE, **SPREAD, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "ALiBi"),
    Decoder("MPT", "MptForCausalLM", {**SIZE, **SPREAD, "d_model": 32, "n_layers": 2, "n_heads": 4}, "ALiBi"),
    Decoder(
        "Falcon",
        "FalconForCausalLM",
        {**BASIC, "new_decoder_architecture": True, "num_kv_heads": 2, "max_position_embeddings": POSITIONS},
        "one matrix for q, k, v",
    ),
    Decoder("Falcon with ALiBi", "FalconForCausalLM", {**BASIC, "alibi": True}, "the 1B models"),
    Decoder("BERT as a decoder", "BertLMHeadModel", {**BERT, "is_decoder": True}, "learnt positions"),
    Decoder("Mixtral", "MixtralForCausalLM", {**LLAMA, **LOCAL_EXPERTS}, "LoRA on attention only"),
    Decoder(
        "Qwen2-MoE", "Qwen2MoeForCausalLM", {**LLAMA, **EXPERTS, "shared_expert_intermediate_size": 16}, "as Mixtral"
    ),
    Decoder("Qwen3-MoE", "Qwen3MoeForCausalLM", {**LLAMA, **EXPERTS, "head_dim": 8}, "as Mixtral"),
    Decoder(
        "DeepSeek-V3",
        "DeepseekV3ForCausalLM",
        {
            **BERT,
            **LATENT,
            "num_key_value_heads": 4,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
        "LoRA on its attention, which goes through latents, only",
    ),
    Decoder(
        "gpt-oss",
        "GptOssForCausalLM",
        {**GEMMA, **LOCAL_EXPERTS},
        "LoRA on attention only; sinks; windows in every other layer",
        window="sliding_window",
    ),
    Decoder(
        "Llama 4, text",
        "Llama4ForCausalLM",
        {
            **LLAMA,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 48,
            "interleave_moe_layer_step": 1,
            "no_rope_layers": [1, 0],
            "attention_chunk_size": WINDOW,
        },
        "attention in chunks; LoRA on attention and shared experts, which the encoder leaves out",
        window="attention_chunk_size",
    ),
    Decoder(
        "Jamba",
        "JambaForCausalLM",
        {
            **LLAMA,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 4,
        },
        "Mamba layers, experts",
    ),
    Decoder(
        "Qwen3-Next",
        "Qwen3NextForCausalLM",
        {
            **LLAMA,
            **EXPERTS,
            **DELTA,
            "head_dim": 16,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
        "linear attention, experts; so is Qwen3.5",
    ),
    Decoder(
        "RecurrentGemma",
        "RecurrentGemmaForCausalLM",
        {
            **BASIC,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "intermediate_size": 48,
            "lru_width": 32,
            "attention_window_size": WINDOW,
        },
        "recurrent layers and windows",
        window="attention_window_size",
    ),
    Decoder(
        "Mamba",
        "MambaForCausalLM",
        MAMBA,
        '`target_modules="in_proj"`: PEFT refuses "all-linear", and the other layers\' weights are taken past LoRA',
        target_modules="in_proj",
    ),
    Decoder(
        "RWKV",
        "RwkvForCausalLM",
        {**SIZE, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "context_length": POSITIONS},
        "of more than 6 layers with `rescale_every=0` in its config.json",
    ),
)
