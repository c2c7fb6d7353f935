"""Which pattern fits an observed attention map."""
