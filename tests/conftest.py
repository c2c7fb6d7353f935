"""Golden files: `pytest --update` writes what the code says now; read the difference before committing it."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton


def pytest_addoption(parser):
    parser.addoption("--update", action="store_true", help="write golden files anew")


def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(getattr(item, "module", None), "DEVICE"):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def golden(request):
    def check(name: str, text: str) -> None:
        path = Path(__file__).parent / "golden" / name
        if request.config.getoption("--update"):
            path.write_text(text)
        assert text == path.read_text(), f"{path.name} differs; pytest --update writes it"

    return check
