"""The small encoder that teaches. Its scores are data: computed once a text, before training, and read from disk."""
