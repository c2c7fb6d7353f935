"""Run-time values: declare them (`Input`, `Param`), check them and bind them to an expression's names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .canvas import MOST_TOKENS
from .errors import FlexSpecError, choices
from .expr import SIZES, Expr, Var, fixed_size, inputs_of, param, params_of, walk
from .expr import Input as InputNode
from .expr import input_ as input_node
from .ops import OPS, Type
from .syntax import CONSTANTS, leaf
from .traced import Traced, TracedTensor
from .user_line import user_caret

_KINDS = {"bool": Type.BOOL, "int": Type.INT, "float": Type.FLOAT, "double": Type.DOUBLE}
Number = bool | int | float


def _kind(kind: object) -> Type:
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    if isinstance(kind, torch.dtype):
        return Type.of_dtype(kind)
    if name not in _KINDS:
        message = f"`{name}` is no type of a value"
        raise FlexSpecError("FS023", message, fix=f"give {choices(_KINDS)}", where=user_caret())
    return _KINDS[name]


def identifier(name: object) -> str:
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
        raise FlexSpecError("FS021", f"{name!r} is no name for a value", where=user_caret())
    if name in OPS or name in CONSTANTS or leaf(name):
        raise FlexSpecError("FS021", f"`{name}` already has a meaning", fix="take another name", where=user_caret())
    return name


def _dim_name(dim: object) -> str | None:
    """A dim as an expression names it, `_257` where it is a number; None for what is neither."""
    if type(dim) is int and dim > 0:
        return f"_{dim}"
    return dim if isinstance(dim, str) and dim.isidentifier() else None


class Param(Traced):
    """A number that is given when the pattern runs, and costs no recompile when it changes.

    name: an identifier that no operator, position or size has.
    dtype: bool, int, float or double.

    Raises FS021 (name), FS023 (dtype).

    >>> import flexspec as fs
    >>> window = fs.Param("window")
    >>> near = fs.mask(lambda q, kv: (q - kv).abs() <= window)
    >>> near.dense(3, window=1).int().tolist()
    [[[[1, 1, 0], [1, 1, 1], [0, 1, 1]]]]
    """

    __slots__ = ()

    def __init__(self, name: str, dtype: object = "int") -> None:
        super().__init__(param(identifier(name), _kind(dtype)))


class Input(TracedTensor):
    """A tensor that is given when the pattern runs: `Input("document_id", dims=("batch", "sequence"))`.

    name: an identifier that no operator, position or size has.
    dims: names. `batch` and `heads` (or size 1, which serves all), `q_len`, `kv_len` and `sequence` (the longer of the
        two lengths) are compared with the call; `_` may have any size; other names must agree with each other. A number
        is a dim of that size, which text writes `_257`.
    dtype: bool, int, float or double.

    Raises FS021 (name), FS022 (dims), FS023 (dtype); a call checks the tensor.

    >>> import flexspec as fs, torch
    >>> ids = fs.Input("document_id", dims=("batch", "sequence"))
    >>> same = fs.mask(lambda b, q, kv: ids[b, q] == ids[b, kv])
    >>> same.dense(3, document_id=torch.tensor([[0, 0, 1]])).int().tolist()
    [[[[1, 1, 0], [1, 1, 0], [0, 0, 1]]]]
    """

    def __init__(self, name: str, dims: Iterable[str | int], dtype: object = "int") -> None:
        names = [_dim_name(dim) for dim in dims]
        if isinstance(dims, str) or None in names:
            message = f"dims of {name} are {dims!r}"
            raise FlexSpecError("FS022", message, fix='give names: ("batch", "sequence")', where=user_caret())
        super().__init__(input_node(identifier(name), tuple(filter(None, names)), _kind(dtype)), (), None)

    def __repr__(self) -> str:
        return str(self.source)


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of one call. `batch` and `heads` are None where nobody said them."""

    q_len: int
    kv_len: int
    batch: int | None = None
    heads: int | None = None

    def of(self, dim: str) -> int | None:
        if dim == "sequence":
            return max(self.q_len, self.kv_len)
        return getattr(self, dim) if dim in SIZES else None


def check_length(name: str, value: object, least: int = 1) -> int:
    """A size as an int from `least` to 2**62, else FS030."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        message = f"{name} is {value!r}"
        raise FlexSpecError("FS030", message, fix=f"give an integer of at least {least}", where=user_caret())
    if value > MOST_TOKENS:
        raise FlexSpecError("FS030", f"{name} is more than 2**62", fix="give a smaller one", where=user_caret())
    return value


def make_sizes(q_len: Any, kv_len: Any = None, batch: Any = None, heads: Any = None) -> Sizes:
    """Checked sizes; `kv_len` defaults to `q_len`. FS030."""
    return Sizes(
        check_length("q_len", q_len),
        check_length("kv_len", q_len if kv_len is None else kv_len),
        None if batch is None else check_length("batch", batch),
        None if heads is None else check_length("heads", heads),
    )


@dataclass(frozen=True, slots=True)
class Bound:
    """Every value that an expression needs, checked, and the sizes (batch and heads inferred where possible).

    rows: the true position of each row as an expression, by side ("q", "kv"); a side that is missing is as it stands.
    Where they are given, `numbers` may hold `q_len` and `kv_len` of the whole sequence.
    """

    tensors: dict[str, torch.Tensor]
    numbers: dict[str, Number]
    sizes: Sizes
    rows: Mapping[str, Expr] = field(default_factory=dict)

    def all_numbers(self) -> dict[str, Number]:
        """Parameters and sizes by name."""
        sizes = {name: value for name in SIZES if (value := getattr(self.sizes, name)) is not None}
        return {**sizes, **self.numbers}


def bind(
    exprs: Iterable[Expr],
    held: Mapping[str, Any],
    defaults: Mapping[str, Any],
    given: Mapping[str, Any],
    sizes: Sizes,
    *,
    assume_one: bool = False,
) -> Bound:
    """Find a value for each name in `exprs`: from the call, else held by the pattern, else a default.

    Batch and heads that nobody gives are read off the tensors; else they are 1 if `assume_one`, or FS031 where needed.

    All mistakes are reported together: FS020 missing, FS021 unknown, FS022 shape, FS023 type, FS031 sizes.
    """
    exprs = list(exprs)
    tensors = {name: node for expr in exprs for name, node in inputs_of(expr).items()}
    numbers = {name: node for expr in exprs for name, node in params_of(expr).items()}
    open_names = (tensors.keys() | numbers.keys() | defaults.keys()) - held.keys()
    errors = [_unknown(name, open_names) for name in given if name not in open_names]
    values = {**defaults, **held, **given}
    bound: dict[str, torch.Tensor] = {}
    plain: dict[str, Number] = {}
    for name, wanted in {**tensors, **numbers}.items():
        try:
            if name not in values:
                raise _missing(wanted)
            if isinstance(wanted, InputNode):
                bound[name] = check_tensor(wanted, values[name])
            else:
                plain[name] = number_for(name, wanted.type, values[name])
        except FlexSpecError as error:
            errors.append(error)
    if errors:
        raise FlexSpecError.collect(errors)
    sizes = _infer(exprs, tensors, bound, sizes, assume_one)
    return Bound(_fit(tensors, bound, sizes), plain, sizes)


def _unknown(name: str, known: Iterable[str]) -> FlexSpecError:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1)
    fix = f"did you mean `{near[0]}`?" if near else f"it takes {choices(names)}" if names else "it takes none"
    return FlexSpecError("FS021", f"the pattern has no value named `{name}`", fix=fix, where=user_caret())


def _missing(node: Expr) -> FlexSpecError:
    name = node.name  # type: ignore[attr-defined]
    if isinstance(node, InputNode):
        dims = _shown_dims(node)
        fix = f"give {name}=<{node.type.text} tensor [{dims}]>"
    else:
        fix = f"give {name}=<{node.type.text}>"
    return FlexSpecError("FS020", f"`{name}` has no value", fix=fix, where=user_caret())


def _shown_dims(node: InputNode) -> str:
    return ", ".join(dim if fixed_size(dim) is None else dim[1:] for dim in node.dims)


def check_tensor(node: InputNode, value: Any) -> torch.Tensor:
    """A tensor that fits an input's type and dims. FS022, FS023."""
    if not isinstance(value, torch.Tensor):
        message = f"`{node.name}` is a {type(value).__name__}"
        raise FlexSpecError("FS023", message, fix="give a torch.Tensor", where=user_caret())
    try:
        kind = Type.of_dtype(value.dtype)
    except TypeError:
        raise FlexSpecError("FS023", f"`{node.name}` has dtype {value.dtype}", where=user_caret()) from None
    if kind is not node.type and not (kind > Type.INT and node.type > Type.INT):
        message = f"`{node.name}` has dtype {value.dtype}; the pattern reads {node.type.text}"
        raise FlexSpecError("FS023", message, fix="convert it before the call", where=user_caret())
    if value.dim() != len(node.dims):
        dims = _shown_dims(node)
        message = f"`{node.name}` has shape {tuple(value.shape)}; its dims are [{dims}]"
        raise FlexSpecError("FS022", message, where=user_caret())
    if 0 in value.shape:
        raise FlexSpecError("FS022", f"`{node.name}` is empty: shape {tuple(value.shape)}", where=user_caret())
    return value


def number_for(name: str, kind: Type, value: Any) -> Any:
    """A parameter's value as a Python number (a zero-dim tensor is read). FS023."""
    if isinstance(value, torch.Tensor) and value.dim() == 0:
        value = value.item()
    wanted: Any = {Type.BOOL: bool, Type.INT: int}.get(kind, (int, float))
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not Type.BOOL):
        message = f"`{name}` is {value!r}; it must be {kind.text}"
        raise FlexSpecError("FS023", message, where=user_caret())
    if kind is Type.INT and not -(2**62) < value < 2**62:
        raise FlexSpecError("FS034", f"`{name}` is {value}, too large for 64-bit arithmetic", where=user_caret())
    return float(value) if kind > Type.INT else value


def _infer(
    exprs: Iterable[Expr],
    nodes: Mapping[str, InputNode],
    tensors: Mapping[str, torch.Tensor],
    sizes: Sizes,
    assume_one: bool,
) -> Sizes:
    """Fill in batch and heads from the tensors that name them, where the expressions read them."""
    counts = {"batch": sizes.batch, "heads": sizes.heads}
    for dim in counts:
        if counts[dim] is None:
            sides = {tensors[n].shape[node.dims.index(dim)] for n, node in nodes.items() if dim in node.dims}
            counts[dim] = max(sides, default=1 if assume_one else None)
    for dim, position in (("batch", "b"), ("heads", "h")):
        if counts[dim] is None and any({position, dim} & _variables(expr) for expr in exprs):
            message = f"the pattern depends on `{position}`, and nothing says how many there are"
            raise FlexSpecError("FS031", message, fix=f"give {dim}=<count>", where=user_caret())
    return Sizes(sizes.q_len, sizes.kv_len, counts["batch"], counts["heads"])


def _variables(expr: Expr) -> set[str]:
    return {node.name for node in walk(expr) if isinstance(node, Var)}


def _fit(nodes: Mapping[str, InputNode], tensors: Mapping[str, torch.Tensor], sizes: Sizes) -> dict[str, torch.Tensor]:
    """The tensors at the sizes of the call: one batch entry or one head is expanded to all. FS022."""
    fitted: dict[str, torch.Tensor] = {}
    first_uses: dict[str, tuple[int, str]] = {}
    for name, tensor in tensors.items():
        shape = list(tensor.shape)
        for axis, dim in enumerate(nodes[name].dims):
            wanted, owner = sizes.of(dim), "the call"
            if fixed_size(dim) is not None:
                wanted, owner = fixed_size(dim), "the pattern"
            elif wanted is None and dim != "_":
                wanted, owner = first_uses.setdefault(dim, (shape[axis], name))
            if wanted is None or shape[axis] == wanted:
                continue
            if dim in ("batch", "heads") and shape[axis] == 1:
                shape[axis] = wanted
                continue
            seen, fix = (f"`{dim}`", dim) if fixed_size(dim) is None else (str(axis), f"shape[{axis}]")
            message = f"dim {seen} of `{name}` has size {shape[axis]}, {owner} has {wanted}"
            raise FlexSpecError("FS022", message, fix=f"give `{name}` with {fix} = {wanted}", where=user_caret())
        fitted[name] = tensor.expand(shape)
    return fitted
