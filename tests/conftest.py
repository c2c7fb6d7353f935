"""Golden files: `pytest --update` writes what the code says now; read the difference before committing it.

Random tests draw the same numbers in each run, so that `make test` answers alike everywhere; `pytest --random` draws
new ones.
"""

import os
import random
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton


def pytest_addoption(parser):
    parser.addoption("--update", action="store_true", help="write golden files anew")
    parser.addoption("--random", action="store_true", help="draw new random numbers")


def pytest_configure(config):
    settings.register_profile("fixed", derandomize=True)
    settings.load_profile("default" if config.getoption("--random") else "fixed")


@pytest.fixture(autouse=True)
def seeded(request):
    torch.manual_seed(random.getrandbits(32) if request.config.getoption("--random") else 0)


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
