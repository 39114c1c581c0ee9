# Everything sets up what it needs first; `make help` lists the targets.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.realmem

.DEFAULT_GOAL := help
.PHONY: help report test quick soak host-diff mutants test-numa test-asan test-tsan bench lint build \
    clean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

report: build ## the main job: what this machine is, and what its memory costs
	$(VENV)/bin/realmem topology
	$(VENV)/bin/realmem bench all --quick --json report.json

test: build ## run the tests, in parallel
	$(PY) -m pytest -n auto $(ARGS)

quick: build ## run the tests that take seconds
	$(PY) -m pytest -n auto -m "not slow" $(ARGS)

soak: build ## run the long tests, ten times as long (SOAK=10)
	$(PY) -m pytest -m "slow or storm" --soak $(or $(SOAK),10) $(ARGS)

host-diff: build ## random steps on the kernel and on realmem, compared after each (ARGS="--steps N --seed S")
	PYTHONPATH=tests $(PY) -m host --jobs 2 $(ARGS)

mutants: build ## break the allocators on purpose: do their tests notice?
	$(PY) tools/mutants.py $(ARGS)

test-numa: build ## test on real nodes: guests of two and four NUMA nodes
	$(PY) tools/test_numa.py $(ARGS)

test-asan: build ## test a build with AddressSanitizer and UndefinedBehaviorSanitizer
	$(PY) tools/test_sanitized.py address $(ARGS)

test-tsan: build ## test a build with ThreadSanitizer: threads, faults, storms
	$(PY) tools/test_sanitized.py thread $(ARGS)

bench: build ## measure everything, beside what else does the job (REALMEM_PEERS=DIR)
	$(VENV)/bin/realmem bench all --peers $(ARGS)

lint: build $(VENV)/.realmem-lint ## ruff, mypy --strict, stubtest, cython-lint, the kernel side's C
	$(PY) -m ruff check .
	$(PY) -m mypy
	PATH="$$(cd $(VENV) && pwd)/bin:$$PATH" cython-lint cython
	$(PY) -m mypy.stubtest --ignore-missing-stub --ignore-positional-only \
	    --ignore-disjoint-bases --ignore-unused-allowlist --allowlist tools/stubtest.txt \
	    $$(find realmem -name '*.pyi' | sed 's|/|.|g; s|\.pyi$$||')
	$(PY) tools/check_kernel_side.py
	if $(PY) -c 'import codespell_lib' 2>/dev/null; then $(PY) -m codespell_lib; fi

# An editable install is rebuilt by the first import after a change, without a lock:
# that import happens here, once, before anything runs in parallel.
build: $(STAMP) ## set up and build
	@$(PY) -c 'import realmem' 2>/dev/null || MESONPY_EDITABLE_VERBOSE=1 $(PY) -c 'import realmem'

clean: ## remove what was built and set up
	rm -rf $(VENV) build dist report.json .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamp is written last and holds the checkout's path, so a half-made or moved
# environment, or one whose Python went away, is made again.
ifneq ($(shell $(PY) -c pass 2>/dev/null && cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): FORCE
endif
$(STAMP): pyproject.toml
	$(PYTHON) -B tools/bootstrap.py --venv $(VENV)

$(VENV)/.realmem-%: pyproject.toml $(STAMP)
	$(PY) -B tools/bootstrap.py --only $*
	touch $@
