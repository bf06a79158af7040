"""From a pair of texts to tokens: the prompt, its wording by family of tokenizers, texts without control tokens."""
