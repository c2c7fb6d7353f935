"""Attention patterns as small Python predicates, compiled to exact block-sparse masks and kernels."""

from __future__ import annotations

from .attention import Attention
from .canvas import Canvas
from .errors import FlexSpecError, FlexSpecWarning
from .inputs import Input, Param
from .mask import Mask, from_mask_mod, mask
from .order import Order, axes, row_major, striped, tiled
from .score import ScoreMod, from_score_mod, score
from .syntax import parse
