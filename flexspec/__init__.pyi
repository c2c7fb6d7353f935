"""The names at the top, for type checkers. A test compares them with what `__init__.py` gives."""

from . import orders as orders, patterns as patterns, proofs as proofs
from .attention import Attention as Attention
from .canvas import Canvas as Canvas
from .errors import FlexSpecError as FlexSpecError, FlexSpecWarning as FlexSpecWarning
from .inputs import Input as Input, Param as Param
from .mask import Mask as Mask, from_mask_mod as from_mask_mod, mask as mask
from .orders import *
from .patterns import *
from .patterns import scores as scores, weights as weights
from .proofs import *
from .score import ScoreMod as ScoreMod, from_score_mod as from_score_mod, score as score
from .selecting import chosen as chosen, select as select, selector as selector
from .selection import share as share, threshold as threshold, top_k as top_k, top_p as top_p
from .spec import load as load
from .syntax import parse as parse
from .text import parse_pattern as parse_pattern
from .weight import Weight as Weight

from .compiler.backends.base import Backend as Backend
from .compiler.compile import compile as compile
from .compiler.compiled import CompiledAttention as CompiledAttention
from .compiler.backends.reference import reference_attention as reference_attention
from .compiler.backends.stored import QuantisedTensor as QuantisedTensor
from .compiler.backends.stored import quantise as quantise
from .compiler.blocks.block_map import BlockMap as BlockMap
from .compiler.blocks.runs import BlockKind as BlockKind
from .compiler.kept_keys import KeptKeys as KeptKeys, kept_keys as kept_keys
from .compiler.measuring.measure import Measures as Measures, measure as measure
from .compiler.measuring.recall import Recall as Recall, recall as recall
from .compiler.measuring.rollout import Rollout as Rollout, rollout as rollout
from .compiler.merging import merge as merge
from .compiler.draw.orders import show_orders as show_orders
from .compiler.fitting.families import Family as Family
from .compiler.fitting.fit import Fit as Fit, Fits as Fits, fit as fit
from .compiler.maps import block_map as block_map, create_block_mask as create_block_mask
from .compiler.planning.hardware import Hardware as Hardware
from .compiler.planning.planner import plan as plan
from .compiler.planning.plans import Plan as Plan, Plans as Plans
