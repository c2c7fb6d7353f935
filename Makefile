# make demo   a pattern compiled, checked against the reference, drawn
# make test   lint, type check, all tests
# make gpu    with a PYTHON whose torch has CUDA: kernel tests there, under compute-sanitizer too, and the benchmarks
#             (MINUTES=8: the most important first; BENCH="--only forward": arguments of bench/attention.py)
# make dist   wheel and sdist, and the wheel tried in a clean environment
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint unit gpu dist clean
demo: $(VENV)/installed
	$(BIN)/python examples/01_quickstart.py

test: lint unit

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: $(VENV)/installed
	$(BIN)/pytest -n auto --dist loadfile

gpu:
	$(PYTHON) bench/gpu.py $(if $(MINUTES),--minutes $(MINUTES)) -- $(BENCH)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt "torch>=2.10"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

dist: $(VENV)/installed
	rm -rf dist && $(BIN)/python -m build --outdir dist .
	rm -rf .venv-wheel && $(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet -c constraints.txt "torch>=2.10"
	.venv-wheel/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	cd $$(mktemp -d) && $(CURDIR)/.venv-wheel/bin/flexspec check "causal_window(8)" --against "causal & causal_window(8)" \
		--length 100 && $(CURDIR)/.venv-wheel/bin/python $(CURDIR)/examples/01_quickstart.py

clean:
	rm -rf $(VENV) .venv-wheel build dist *.egg-info out
