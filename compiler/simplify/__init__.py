"""Expressions rewritten: brought to the form in which bounds are tight, limited, differentiated, turned into spans."""
