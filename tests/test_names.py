"""Public names: what is at the top, what is in a namespace, what still works, and that importing takes no torch."""

from __future__ import annotations

import ast
import pickle
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import flexspec as fs
from flexspec.patterns.listing import listing

ROOT = Path(__file__).parent.parent
NAMESPACES = ["orders", "patterns", "proofs", "scores", "weights"]
MASKS = [pattern.name for pattern in listing() if pattern.kind == "mask"]

# All names that were at the top before there were namespaces.
ONCE = """
Attention BlockKind BlockMap CATALOG Canvas CompiledAttention Diff Entry Family Fit Fits FlexSpecError FlexSpecWarning
Hardware Input KeptKeys Mask Order Param Plan Plans Proof Reach ScoreMod TOKEN_TYPES Weight adjacency alibi any_shared
axes axial block_causal_2d block_diffusion block_map bridge by_label causal causal_window chunk_causal chunked compile
concatenated create_block_mask diff dilated dilated_window distance_scale document epipolar equals every_query_attends
everything first_frame fit fixed frame_window from_mask_mod from_score_mod global_tokens halo hidden_decoding hilbert
identity_mix implies is_causal is_empty kept_keys key_gain load log_sparse mask morton neighborhood nothing padding
parse parse_pattern per_head plan power_window prefix_lm radial reach reference_attention relative_bias relu_weight
reordered row_major same_label scaled_span score segments shared_prefix shifted_groups show_orders sigmoid_weight
signed_weight sink sink_logit sink_window sliding_tile sliding_window softcap spatial_head squared_relu_weight strided
striped swin_bias t5_bias t5_buckets taylor_weight temporal_head tiled token_types tree windows with_text zigzag
""".split()

IN_NAMESPACES = {
    "orders": "Order axes by_label concatenated dilated hilbert morton row_major striped tiled zigzag",
    "scores": "alibi distance_scale key_gain relative_bias softcap swin_bias t5_bias t5_buckets",
    "weights": "identity_mix relu_weight sigmoid_weight signed_weight sink_logit squared_relu_weight taylor_weight",
    "proofs": "Diff Proof Reach diff equals every_query_attends implies is_causal is_empty reach",
    "patterns": "CATALOG causal alibi sink_logit",
}


def in_a_fresh_process(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_every_name_that_was_at_the_top_still_works():
    assert len(ONCE) == 118
    assert [name for name in ONCE if not hasattr(fs, name)] == []


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_namespace_holds_the_same_objects(namespace):
    for name in IN_NAMESPACES[namespace].split():
        assert getattr(getattr(fs, namespace), name) is getattr(fs, name)


def test_what_readme_docs_and_examples_use_is_at_the_top():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.py")]
    used = {name for page in pages for name in re.findall(r"\bfs\.([A-Za-z_]\w*)", page.read_text())}
    assert len(used) > 50
    assert sorted(used - {*fs.__all__, *NAMESPACES}) == []


def test_every_mask_is_at_the_top_and_of_other_patterns_only_three():
    others = {pattern.name for pattern in listing()} - {*MASKS}
    assert {*MASKS} < {*fs.__all__}
    assert others & {*fs.__all__} == {"alibi", "sink_logit", "softcap"}


def test_dir_shows_the_names_and_the_namespaces():
    assert dir(fs) == sorted([*fs.__all__, *NAMESPACES])
    assert {"hilbert", "t5_bias", "sigmoid_weight", "implies", "Entry"}.isdisjoint(dir(fs))
    assert dir(fs.proofs) == fs.proofs.__all__


def test_a_name_that_is_not_there_is_an_attribute_error():
    for module in (fs, fs.proofs):
        for name in ("nope", "__wrapped__", "a.b", ""):
            with pytest.raises(AttributeError, match="has no attribute"):
                getattr(module, name)


def test_a_star_import_takes_all_names_and_no_more():
    names: dict[str, object] = {}
    exec("from flexspec import *", names)
    assert sorted(names.keys() - {"__builtins__"}) == fs.__all__
    assert names["mask"] is fs.mask and names["compile"] is fs.compile


def test_modules_do_not_hide_the_functions_of_the_same_name():
    first = "import flexspec.mask, flexspec.score; import flexspec as fs; print(fs.mask.__name__, fs.score.__name__)"
    later = "import flexspec as fs; fs.Mask; fs.ScoreMod; print(fs.mask.__name__, fs.score.__name__)"
    assert in_a_fresh_process(first) == in_a_fresh_process(later) == "mask score"


def test_submodules_are_there_without_their_own_import():
    assert in_a_fresh_process(
        "import flexspec as fs; print(fs.errors.CODES['FS001'] != '', fs.order.tiled is fs.tiled)"
    )


def test_values_are_pickled():
    for value in (fs.Mask, fs.FlexSpecError, fs.Canvas(h=2, w=3), fs.tiled(fs.Canvas(h=2, w=3), h=2)):
        assert pickle.loads(pickle.dumps(value)) == value


def stub_names() -> dict[str, object]:
    """What `__init__.pyi` says, read as a type checker reads it: `X as X` and `*` are names of the package."""
    names: dict[str, object] = {}
    for node in ast.parse((ROOT / "flexspec" / "__init__.pyi").read_text()).body:
        if not isinstance(node, ast.ImportFrom):
            continue
        module = import_module(f"flexspec.{node.module}" if node.module else "flexspec")
        for alias in node.names:
            assert alias.name == "*" or alias.asname == alias.name, "a type checker takes this name as private"
            own = module.__all__ if alias.name == "*" else [alias.name]
            names |= {name: getattr(module, name) for name in own}
    return names


def test_type_checkers_see_the_names_that_are_there():
    seen = stub_names()
    assert sorted(seen) == sorted({*ONCE, *fs.__all__, *NAMESPACES, *fs.patterns.__all__})
    assert [name for name, value in seen.items() if value is not getattr(fs, name)] == []


def test_the_listing_is_the_catalog():
    both = [
        [(each.name, each.kind, each.family, each.example, each.meaning) for each in patterns]
        for patterns in (listing(), fs.patterns.CATALOG.values())
    ]
    assert both[0] == both[1]


@pytest.mark.parametrize("use", ["fs.__all__", "dir(fs)", "hasattr(fs, 'nope')", "fs.FlexSpecError"])
def test_looking_at_the_package_imports_no_torch(use):
    assert in_a_fresh_process(f"import flexspec as fs, sys; {use}; print('torch' in sys.modules)") == "False"
