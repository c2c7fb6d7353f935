"""Which pattern and which order: what fits an observed map, what runs cheapest."""
