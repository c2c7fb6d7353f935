"""The names of the patterns, for type checkers. A test compares its families with those of `listing`."""

from .catalog import CATALOG as CATALOG, Entry as Entry
from .documents import *
from .grid import *
from .heads import *
from .mixed import *
from .scores import *
from .selectors import *
from .sequence import *
from .tokens import *
from .video import *
from .weights import *
