"""Expressions printed: as Python for FlexAttention, as Triton, as LaTeX."""
