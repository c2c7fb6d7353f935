"""What the documentation says is so: README code runs as printed, examples in docstrings hold."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import flexspec as fs

ROOT = Path(__file__).parent.parent


def test_readme_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    wanted = re.search(r"```text\n(.*?)```", text, re.S).group(1)
    namespace: dict = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert capsys.readouterr().out == wanted
    assert Path("out/mask.png").exists()
    values = {"window": 512, "document_id": namespace["ids"]}
    truth = fs.reference_attention(namespace["pattern"], *(namespace[x] for x in "qkv"), **values)
    assert (namespace["out"] - truth).abs().max() < 1e-5


def test_links_of_the_docs_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r'\]\(([^)#]+)\)|src="([^"]+)"', page.read_text()):
            path = target[0] or target[1]
            assert path.startswith("http") or (page.parent / path).exists(), f"{page.name}: {path}"


FILES = [*(ROOT / "flexspec").rglob("*.py"), *(ROOT / "compiler").rglob("*.py")]
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_docstring_examples(name):
    module = importlib.import_module(name if name.startswith("flexspec") else f"flexspec.{name}")
    found = doctest.testmod(module)
    assert not found.failed
