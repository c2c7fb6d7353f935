"""Names of the user's and names of the printed source never meet: in any role, in any printer, in text and in files."""

import ast
import builtins
import json
import keyword
import re
import symtable

import pytest
import torch
from flexspec.compiler.backends.triton import arithmetic
from flexspec.compiler.backends.triton.functions import functions
from flexspec.compiler.printers import python, triton
from flexspec.compiler.printers.base import CASTS, Printer, form_of
from flexspec.compiler.printers.latex import to_latex
from flexspec.compiler.printers.names import Names
from test_aot import output, started
from test_triton import qkv

import flexspec as fs
from flexspec.ops import OPS, Type
from flexspec.syntax import CONSTANTS, leaf

JAVASCRIPT = """arguments async await break case catch class const continue debugger default delete do else enum eval export
extends finally function get implements import in instanceof interface let new null of package private protected public
return set static super switch this throw try typeof undefined var void while with yield Math NaN Infinity"""
CPP = """alignas auto bool char constexpr decltype double explicit extern float goto inline int long mutable namespace nullptr
operator register reinterpret_cast short signed sizeof struct template typename union unsigned using virtual volatile
wchar_t __global__ __device__ __shared__ blockIdx threadIdx half cute uint32_t"""
OURS = """t0 t1 t2 torch tl triton values make mask_mod score_mod score s first end rest place_0 slope_0 gather dscore sums keep ds
q_idx kv_idx b_ h_ q_ kv_ torch_ torch_2 make_ tensor value value_ value_2 attend flex_attention block_mask"""
ODD = "_ __ __x _x x_ x__y __debug__ __class__ __builtins__ __name__ Ellipsis inf nan größe self cls L G buf0 tmp0 in_ptr0 k v"
WORDS = f"{JAVASCRIPT} {CPP} {OURS} {ODD}".split()
HELPERS = [name for name in vars(arithmetic) if not name.startswith("_")]
BUILTINS = [name for name in dir(builtins) if name.isidentifier()]
EVERY = sorted({*WORDS, *HELPERS, *BUILTINS, *keyword.kwlist, *keyword.softkwlist, "window", "ids"})
LENGTH, SPAN = 12, 5
TABLE = torch.tensor([3, 5, 1, 7, 2, 0, 9, 4, 4, 6, 1, 8])


def kept(q, kv, limit):
    """The pairs of every mask below, in plain Python. It computes two things twice, so that there are temporaries."""
    d = q - kv
    return (d >= 0) & (d < limit) & ((d % 3 != 1) | (d % 3 + kv < 9))


BY_NUMBER = torch.tensor([[kept(q, kv, SPAN) for kv in range(LENGTH)] for q in range(LENGTH)])
BY_TABLE = torch.tensor([[kept(q, kv, int(TABLE[q])) for kv in range(LENGTH)] for q in range(LENGTH)])


def own_parameter(name):
    """A mask with a keyword-only parameter of that name."""
    if keyword.iskeyword(name) or name == "__debug__":
        pytest.skip("Python has no such parameter")
    scope = {"kept": kept}
    exec(f"def predicate(q, kv, *, {name}): return kept(q, kv, {name})", scope)
    return fs.mask(scope["predicate"]), {name: SPAN}, BY_NUMBER


def run_time_number(name):
    limit = fs.Param(name)
    return fs.mask(lambda q, kv: kept(q, kv, limit)), {name: SPAN}, BY_NUMBER


def run_time_tensor(name):
    limits = fs.Input(name, dims=("_",))
    return fs.mask(lambda q, kv: kept(q, kv, limits[q])), {name: TABLE}, BY_TABLE


def captured(name):
    held = {name: TABLE}
    return fs.mask(lambda q, kv: kept(q, kv, held[name][q])), {}, BY_TABLE


ROLES = (own_parameter, run_time_number, run_time_tensor, captured)


def refused(name, role):
    """Does the language refuse the name: one with a meaning in its text, or one that its text cannot spell?"""
    if role is captured:
        return False
    taken = leaf(name) is not None or not name.isascii() or (role is own_parameter and name in ("q_idx", "kv_idx"))
    return taken or (role is not own_parameter and (name in OPS or name in CONSTANTS))


def made(name, role):
    if refused(name, role):
        with pytest.raises(fs.FlexSpecError, match="FS021|FS001.*same position"):
            role(name)
        pytest.skip("the language refuses it")
    return role(name)


def bound(mask, values):
    values = {name: x for name, x in values.items()}
    return {**mask.tensors, **values, "q_len": LENGTH}


def printed(mask, values, **options):
    """What the printed mask_mod keeps, run by torch."""
    function = python.function_of(
        mask.expr, bound(mask, values), kind="mask_mod", device=torch.device("cpu"), **options
    )
    at, zero = torch.arange(LENGTH, dtype=torch.int32), torch.tensor(0)
    return function(zero, zero, at[:, None], at[None, :])


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.__name__)
@pytest.mark.parametrize("name", EVERY)
def test_every_name_in_every_role(name, role, tmp_path):
    mask, values, wanted = made(name, role)
    assert torch.equal(mask.dense(LENGTH, **values)[0, 0], wanted)
    for options in ({}, {"wide": True, "last_query": True}):
        assert torch.equal(printed(mask, values, **options), wanted)
        assert_closed(python.source_of(mask.expr, kind="mask_mod", **options))
    assert fs.parse(str(mask.expr)) is mask.expr
    for suffix in (".yaml", ".json"):
        mask.save(tmp_path / f"mask{suffix}")
        again = fs.load(tmp_path / f"mask{suffix}")
        assert again.expr is mask.expr
        assert torch.equal(printed(again, values), wanted)
    to_latex(mask.expr)


def assert_closed(source):
    """No argument twice, nothing read that is neither an argument, a temporary, nor one of two globals."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            names = [argument.arg for argument in node.args.args]
            assert len(names) == len(set(names))
    todo = symtable.symtable(source, "printed", "exec").get_children()
    while todo:
        table = todo.pop()
        todo += table.get_children()
        assert {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()} <= {"torch", "float"}
        arguments = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_parameter()}
        temporaries = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_local()} - arguments
        assert not [name for name in temporaries if not re.fullmatch(r"t\d+|mask_mod|score_mod", name)]


@pytest.mark.parametrize("role", ROLES[1:], ids=lambda role: role.__name__)
def test_the_printed_triton_holds_no_name_of_the_users(role):
    """It is the same text whatever they are called."""
    texts = set()
    for name in EVERY:
        if not refused(name, role):
            texts.add(triton.source_of(role(name)[0].expr, kind="rest", wide=False, takes=triton.MASK_TAKES))
    assert len(texts) == 1
    temporaries = re.findall(r"^ +(\w+) = ", texts.pop(), re.MULTILINE)
    assert len(temporaries) >= 2
    ours = {*HELPERS, *triton.OWN, "first", "end", "rest", "dscore", "gather"}
    assert all(re.fullmatch(r"t\d+", name) for name in temporaries)
    assert not [name for name in ours if re.fullmatch(r"(t|place_|slope_)\d+", name)]


def several(names):
    """A mask that reads all of these names at once, each another number or tensor, and a score that reads more."""
    limits = {name: SPAN + number % 3 for number, name in enumerate(names[::2])}
    tables = {name: TABLE + number % 4 for number, name in enumerate(names[1::2])}
    numbers = [fs.Param(name) for name in limits]

    @fs.mask
    def all_of(q, kv):
        keep = q >= kv
        for number in numbers:
            keep = keep & (q - kv < number)
        for name in tables:
            keep = keep & (q - kv <= tables[name][q])
        return keep

    least = [min(*limits.values(), int(min(table[q] for table in tables.values())) + 1) for q in range(LENGTH)]
    wanted = torch.tensor([[0 <= q - kv < least[q] for kv in range(LENGTH)] for q in range(LENGTH)])
    return all_of, limits, wanted


def legal(names):
    return [name for name in names if not refused(name, run_time_number)]


def test_all_names_at_once():
    mask, values, wanted = several(legal(EVERY)[:110])  # an expression nests no deeper
    assert torch.equal(mask.dense(LENGTH, **values)[0, 0], wanted)
    assert torch.equal(printed(mask, values), wanted)
    assert_closed(python.source_of(mask.expr, kind="mask_mod"))
