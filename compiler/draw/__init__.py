"""Drawings of block maps: `picture.save` writes an image file, `terminal.draw` makes text."""
