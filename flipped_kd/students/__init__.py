"""The large language model and its LoRA encoder."""
