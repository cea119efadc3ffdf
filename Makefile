# Two commands do everything, environment included: `make demo` and `make test`. `make docs` builds the site into build/site.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check
# Only wheels whose hash is in the lock: nothing is built from source, so that no build tool is fetched on the way.
LOCKED = $(PIP) install --require-hashes --no-deps --only-binary :all:

.PHONY: demo test docs lock clean

demo: $(VENV)/ready
	$(BIN)/featherweight demo

test: $(VENV)/ready
	$(BIN)/ruff check featherweight tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/python -m pytest

docs: $(VENV)/docs-ready
	$(BIN)/python docs/site/build.py build/site

$(VENV)/%-ready: $(VENV)/ready requirements/%.txt
	$(LOCKED) --requirement requirements/$*.txt
	$(PIP) check
	touch $@

# Which build of torch it is (for a processor, for CUDA) is the machine's choice: pip fetches the one that it finds there, and it is
# installed if the lock has its hash. A CUDA build asks for more libraries, and `pip check` says so.
$(VENV)/ready: pyproject.toml $(wildcard requirements/*.txt)
	$(PYTHON) -m venv $(VENV)
	rm -rf $(VENV)/torch
	$(PIP) download --no-deps --only-binary :all: --dest $(VENV)/torch $$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements/torch.txt)
	$(LOCKED) --no-index --find-links $(VENV)/torch --requirement requirements/torch.txt
	rm -rf $(VENV)/torch
	$(LOCKED) --requirement requirements/packages.txt
	$(PIP) check > /dev/null || $(LOCKED) --requirement requirements/cuda.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	$(PIP) check
	touch $@

# Writes the lock, requirements/*.txt, anew from pyproject.toml and for every platform. Versions stay where they still fit; to
# raise them: `make lock UPDATE=--upgrade`, or `make lock UPDATE="--upgrade-package rich"`.
UPDATE ?=
UV = uv==0.13.9
# PyTorch publishes a build for processors alone beside the package index, of the same version with a suffix (2.13.0+cpu), which
# the index does not list: its hash is added here (CPython 3.11, Linux on x86_64). For other builds, add theirs.
MORE_TORCH = sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b

lock:
	set -e; place=$$(mktemp -d); trap 'rm -rf "$$place"' EXIT; \
	$(PYTHON) -m venv "$$place/venv"; "$$place/venv/bin/python" -m pip install --quiet --only-binary :all: $(UV); \
	cat requirements/*.txt > "$$place/lock"; \
	"$$place/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links --extra dev --extra onnx $(UPDATE) --output-file "$$place/lock" pyproject.toml; \
	echo "# All packages but torch, for every platform. Written by \`make lock\`." > "$$place/packages.txt"; \
	echo "# The builds of torch. Written by \`make lock\`." > "$$place/torch.txt"; \
	echo "# What torch's CUDA build needs besides, on Linux. Written by \`make lock\`." > "$$place/cuda.txt"; \
	awk -v place="$$place/" -v more="    --hash=$(MORE_TORCH) \\\\" \
	    'index($$0, "$(MORE_TORCH)") { next } /^[a-z]/ { file = place (/^torch==/ ? "torch" : /^(nvidia|cuda|triton)/ ? "cuda" : "packages") ".txt" } \
	     { print >> file } /^torch==/ { print more >> file }' "$$place/lock"; \
	for extra in docs evidence; do \
	    "$$place/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	        --no-emit-index-url --no-emit-find-links --extra dev --extra onnx --extra $$extra --constraint "$$place/lock" \
	        --output-file "$$place/with-$$extra" pyproject.toml; \
	    echo "# What the extra $$extra needs besides. Written by \`make lock\`." > "$$place/$$extra.txt"; \
	    awk 'NR == FNR { if (/^[a-z]/) known[$$1]; next } /^[a-z]/ { mine = !($$1 in known) && !/^(torch|nvidia|cuda|triton)/ } mine { print }' \
	        "$$place/lock" "$$place/with-$$extra" >> "$$place/$$extra.txt"; \
	done; \
	cp "$$place"/*.txt requirements/

clean:
	rm -rf $(VENV) runs build dist *.egg-info
