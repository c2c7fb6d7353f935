"""Names of the user's and names of the printed source never meet: in any role, in any printer, in text and in files."""

import ast
import builtins
import json
import keyword
import re
import symtable
from functools import partial

import pytest
import torch
from flexspec.compiler.backends.triton import arithmetic
from flexspec.compiler.printers import python, triton
from flexspec.compiler.printers.latex import to_latex
from test_aot import output, started
from test_triton import qkv

import flexspec as fs
from flexspec.ops import OPS
from flexspec.syntax import CONSTANTS, leaf

JAVASCRIPT = """arguments async await break case catch class const continue debugger default delete do else enum
eval export extends finally function get implements import in instanceof interface let new null of package
private protected public return set static super switch this throw try typeof undefined var void while with
yield Math NaN Infinity"""
CPP = """alignas auto bool char constexpr decltype double explicit extern float goto inline int long mutable
namespace nullptr operator register reinterpret_cast short signed sizeof struct template typename union unsigned
using virtual volatile wchar_t __global__ __device__ __shared__ blockIdx threadIdx half cute uint32_t"""
OURS = """t0 t1 t2 torch tl triton values make mask_mod score_mod score s first end rest place_0 slope_0 gather
dscore sums keep ds q_idx kv_idx b_ h_ q_ kv_ torch_ torch_2 make_ tensor value value_ value_2 attend
flex_attention block_mask"""
ODD = """_ __ __x _x x_ x__y __debug__ __class__ __builtins__ __name__ Ellipsis inf nan größe self cls L G buf0
tmp0 in_ptr0 k v"""
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


def legal(names):
    return [name for name in names if not refused(name, run_time_number)]


def spelt(name, role):
    """Can Python write it? A keyword is no parameter of a function, but may be the key of a dict."""
    return role is not own_parameter or not (keyword.iskeyword(name) or name == "__debug__")


CASES = [(name, role) for role in ROLES for name in EVERY if spelt(name, role)]


def cases(wanted):
    """Names and roles that the language refuses, or does not."""
    chosen = [case for case in CASES if refused(*case) is wanted]
    return pytest.mark.parametrize("name, role", chosen, ids=[f"{name}-{role.__name__}" for name, role in chosen])


@cases(wanted=True)
def test_names_that_the_language_refuses(name, role):
    with pytest.raises(fs.FlexSpecError, match="FS021|FS001.*same position"):
        role(name)


def bound(mask, values):
    return {**mask.tensors, **values, "q_len": LENGTH}


def printed(mask, values, **options):
    """What the printed mask_mod keeps, run by torch."""
    function = python.function_of(
        mask.expr, bound(mask, values), kind="mask_mod", device=torch.device("cpu"), **options
    )
    at, zero = torch.arange(LENGTH, dtype=torch.int32), torch.tensor(0)
    return function(zero, zero, at[:, None], at[None, :])


@cases(wanted=False)
def test_every_name_in_every_role(name, role, tmp_path):
    mask, values, wanted = role(name)
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


def bent_by(score, q, kv, *, step):
    bent = torch.tanh(score)
    return bent + bent * bent * step * (q - kv)


def test_every_name_in_a_score():
    zero, q, kv = torch.tensor(0), torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None, :]
    scores = torch.linspace(-3, 3, LENGTH**2).view(LENGTH, LENGTH)
    for name in legal(EVERY):
        mod = fs.score(partial(bent_by, step=fs.Param(name, "float")))
        function = python.function_of(mod.expr, {name: 0.5}, kind="score_mod", device=torch.device("cpu"))
        torch.testing.assert_close(function(scores, zero, zero, q, kv), bent_by(scores, q, kv, step=0.5))
        assert_closed(python.source_of(mod.expr, kind="score_mod"))


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


MOST = 110
"""Names in one mask: an expression nests no deeper."""
PARTS = [legal(EVERY)[start : start + MOST] for start in range(0, len(legal(EVERY)), MOST)]


@pytest.mark.parametrize("names", PARTS, ids=lambda names: f"{names[0]}-{names[-1]}")
def test_many_names_at_once(names):
    mask, values, wanted = several(names)
    assert torch.equal(mask.dense(LENGTH, **values)[0, 0], wanted)
    assert torch.equal(printed(mask, values), wanted)
    assert_closed(python.source_of(mask.expr, kind="mask_mod"))


RUN = "t0 t1 torch torch_ tl float make mask_mod score_mod s values gather sums place_0 only lambda __debug__".split()
"""What kernels are compiled with."""


def spec_with(names):
    """A mask over all of the names and a score over a run-time tensor for some, with the values."""
    mask, values, wanted = several(names)
    generator = torch.Generator().manual_seed(1)
    gains = {f"{name}_": fs.Input(f"{name}_", dims=("_",), dtype="float") for name in names[:4]}
    values |= {name: torch.rand(LENGTH, generator=generator) for name in gains}

    @fs.score
    def gained(score, q, kv):
        for gain in gains.values():
            score = score * (1 + gain[kv]) + torch.tanh(score) * gain[q]
        return score

    return fs.Attention(mask, [gained]), values, wanted, list(gains)


def by_definition(q, k, v, wanted, values, gains):
    """Attention in float64, by hand."""
    scores = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    for name in gains:
        gain = values[name].double()
        scores = scores * (1 + gain) + torch.tanh(scores) * gain[:, None]
    return torch.softmax(scores.masked_fill(~wanted, -torch.inf), -1).nan_to_num() @ v.double()


@pytest.mark.parametrize("backend", ["reference", "flex", "triton"])
def test_attention_with_these_names(backend):
    spec, values, wanted, gains = spec_with(RUN)
    q, k, v = (x.cpu() for x in qkv(LENGTH, batch=1))
    out = fs.compile(spec, backend=backend, block_size=16)(q, k, v, **values)
    torch.testing.assert_close(out.double(), by_definition(q, k, v, wanted, values, gains), atol=2e-5, rtol=2e-5)


def test_gradients_with_these_names():
    spec, values, wanted, gains = spec_with(RUN)
    leaves = [x.cpu().requires_grad_() for x in qkv(LENGTH, batch=1)]
    leaves += [values[name].requires_grad_() for name in gains]
    out = fs.compile(spec, backend="triton", block_size=16)(*leaves[:3], **values)
    ours = torch.autograd.grad(out.double().square().sum(), leaves)
    truth = torch.autograd.grad(by_definition(*leaves[:3], wanted, values, gains).square().sum(), leaves)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)


def test_the_reported_mask():
    """`t0` once was the name of the printed source for `q - kv`."""

    @fs.mask
    def window(q, kv, *, t0):
        d = q - kv
        return (d >= 0) & (d < t0)

    q, k, v = (x.cpu() for x in qkv(40, batch=1))
    out = fs.compile(window, backend="flex")(q, k, v, t0=5)
    d = torch.arange(40)[:, None] - torch.arange(40)
    torch.testing.assert_close(out.double(), by_definition(q, k, v, (d >= 0) & (d < 5), {}, []), atol=2e-5, rtol=2e-5)
    assert "t1 = (q - kv)" in fs.compile(window).explain(40, t0=5)


AHEAD = """
import json, sys
sys.path.insert(0, "tests")
import flexspec as fs
from test_printed_names import RUN, spec_with
spec, values, _, _ = spec_with(RUN)
spec = fs.Attention(fs.Mask(spec.mask.expr, "Gr\\u00f6\\u00dfe", spec.mask.tensors), spec.scores)
attend = fs.compile(spec, backend="triton", block_size=(16, 128))
for q_len, kv_len in ((12, 12), (1, 1024)):
    report = attend.aot("sm_90", q_len=q_len, kv_len=kv_len, heads=2, head_dim=32, folder=sys.argv[1], **values)
    print(json.dumps([kernel.name for kernel in report.kernels if kernel.cubin]))
"""


def test_kernels_ahead_of_time_with_these_names(tmp_path, monkeypatch):
    """And a label in another alphabet, where files are in ASCII unless someone says otherwise."""
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    training, decode = map(json.loads, output(started("-c", AHEAD, tmp_path)).splitlines())
    assert (training, decode) == (["forward", "deltas", "backward_q", "backward_kv"], ["decode", "merge"])
    assert "Größe" in (tmp_path / "functions.py").read_text(encoding="utf-8")


def test_tensors_under_keys_that_are_no_names():
    """An attribute may have any text for a name, and the formula is part of a generated file."""
    held = torch.nn.Module()
    vars(held)['a b"""\n'] = TABLE
    mask = fs.mask(lambda q, kv: kept(q, kv, vars(held)['a b"""\n'][q]))
    assert list(mask.tensors) == ["tensor"] and fs.parse(str(mask.expr)) is mask.expr


@pytest.mark.parametrize("text", ["q: int; q < kv", "score: float; score < 1.0", "kv_len: int[_]; kv_len[q] > 0"])
def test_text_cannot_declare_what_has_a_meaning(text):
    with pytest.raises(fs.FlexSpecError, match="FS050.*already has a meaning"):
        fs.parse(text)


def test_tables_of_heads_beside_tensors_of_that_name():
    """`per_head` holds a table `head_kind`; so may the masks in it."""
    head_kind = torch.tensor([4, 1])
    mine = fs.mask(lambda h, q, kv: (q >= kv) & (q - kv < head_kind[h]))
    asked = fs.mask(lambda q, kv, *, head_kind: q - kv < head_kind)
    mask = fs.per_head([mine, fs.causal() & asked])
    wanted = torch.tensor([[[0 <= q - kv < limit for kv in range(8)] for q in range(8)] for limit in (4, 2)])
    assert torch.equal(mask.dense(8, heads=2, head_kind=2)[0], wanted)
    function = python.function_of(
        mask.expr, {**mask.defaults, **mask.tensors, "head_kind": 2}, kind="mask_mod", device=torch.device("cpu")
    )
    at = torch.arange(8)
    assert torch.equal(function(torch.tensor(0), torch.arange(2)[:, None, None], at[:, None], at), wanted)
