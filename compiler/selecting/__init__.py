"""Blocks that q and k choose at each call: summaries of blocks, their scores, the rules, and the tables they end in."""
