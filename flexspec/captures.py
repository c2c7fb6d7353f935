"""Find the names under which a predicate knows the tensors that it captures."""

from __future__ import annotations

import functools
from types import FunctionType
from typing import Any

import torch


def tensor_names(fn: object) -> dict[int, str]:
    """`id` of each tensor that a function can reach through closures, globals and attributes, with its name."""
    names: dict[int, str] = {}
    todo: list[tuple[str, Any, int]] = [("fn", fn, 0)]
    seen: set[int] = set()
    while todo:
        name, value, depth = todo.pop(0)
        if isinstance(value, torch.Tensor):
            names.setdefault(id(value), name)
        elif depth < 5 and id(value) not in seen:
            seen.add(id(value))
            todo += [(key, part, depth + 1) for key, part in _reachable(name, value)]
    return names


def _reachable(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, functools.partial):
        return [("fn", value.func), *((name, part) for part in value.args), *value.keywords.items()]
    if isinstance(value, FunctionType):
        found: list[tuple[str, Any]] = []
        for key, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                found.append((key, cell.cell_contents))
            except ValueError:  # a cell that is not filled yet
                continue
        found += [(key, value.__globals__[key]) for key in value.__code__.co_names if key in value.__globals__]
        return found + list((value.__kwdefaults__ or {}).items())
    if isinstance(value, (list, tuple)) and len(value) <= 256:
        return [(name, part) for part in value]
    if isinstance(value, dict) and len(value) <= 256:
        return [(str(key) if str(key).isidentifier() else name, part) for key, part in value.items()]
    if hasattr(value, "__self__"):
        return [(name, value.__self__), (name, getattr(value, "__func__", None))]
    if hasattr(value, "__dict__") and not isinstance(value, type) and not hasattr(value, "__path__"):
        return list(vars(value).items()) + [("fn", type(value).__call__ if callable(value) else None)]
    return []
