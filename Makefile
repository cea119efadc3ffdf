# Two commands do everything, environment included: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check
# Only wheels whose hash is in the lock: nothing is built from source, so that no build tool is fetched on the way.
LOCKED = $(PIP) install --require-hashes --no-deps --only-binary :all:

.PHONY: demo test lock clean

demo: $(VENV)/ready
	$(BIN)/featherweight demo

test: $(VENV)/ready
	$(BIN)/ruff check featherweight tests benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest

# PyTorch's own CPU build asks for no CUDA libraries; the build of the package index for Linux does, and `pip check` says so.
$(VENV)/ready: pyproject.toml requirements.txt requirements-cuda.txt
	$(PYTHON) -m venv $(VENV)
	$(LOCKED) --requirement requirements.txt
	$(PIP) check > /dev/null || $(LOCKED) --requirement requirements-cuda.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	$(PIP) check
	touch $@

# Writes both lock files anew from pyproject.toml, for every platform. Versions stay where they still fit; to raise them:
# `make lock UPDATE=--upgrade`, or `make lock UPDATE="--upgrade-package rich"`.
UPDATE ?=
UV = uv==0.13.9
# The index has one build of torch for each platform; PyTorch publishes a CPU build of the same version beside it, whose local
# version (2.13.0+cpu, CPython 3.11, Linux on x86_64) no resolver of the index sees: its hash is added here.
CPU_TORCH = sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b

lock:
	set -e; place=$$(mktemp -d); trap 'rm -rf "$$place"' EXIT; \
	$(PYTHON) -m venv "$$place/venv"; "$$place/venv/bin/python" -m pip install --quiet --only-binary :all: $(UV); \
	cat requirements.txt requirements-cuda.txt > "$$place/all.txt"; \
	"$$place/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links --extra dev --extra onnx $(UPDATE) --output-file "$$place/all.txt" pyproject.toml; \
	echo "# Every version and hash that is installed, for every platform. Written by \`make lock\`." > "$$place/requirements.txt"; \
	echo "# What torch's CUDA build needs besides, on Linux. Written by \`make lock\`." > "$$place/requirements-cuda.txt"; \
	awk -v place="$$place" -v extra="    --hash=$(CPU_TORCH) \\\\" \
	    '/^[a-z]/ { file = place (/^(nvidia|cuda|triton)/ ? "/requirements-cuda.txt" : "/requirements.txt") } \
	     { print >> file } /^torch==/ { print extra >> file }' "$$place/all.txt"; \
	cp "$$place/requirements.txt" "$$place/requirements-cuda.txt" .

clean:
	rm -rf $(VENV) runs build dist *.egg-info
