"""From tensors to scalars: the three terms, the dual threshold, and other objectives in the place of L_dist."""
