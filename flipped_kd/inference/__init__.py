"""A trained model in use: pairs scored, texts encoded, ranked and searched."""
