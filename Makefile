# Two commands do everything, environment included: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: demo test clean

demo: $(VENV)/ready
	$(BIN)/featherweight demo

test: $(VENV)/ready
	$(BIN)/ruff check featherweight tests benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,onnx]"
	touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info
