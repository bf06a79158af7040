"""From a trained adapter to the Hub: merges, cards, pushes."""
