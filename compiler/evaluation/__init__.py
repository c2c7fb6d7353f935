"""Expressions evaluated in numpy, at many positions at once."""
