"""Which blocks of a mask are empty, partial or full, derived from bounds of the expression."""
