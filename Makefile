# make demo   install what is missing, then run examples/sac_button_press.py
# make test   install what is missing, then ruff, mypy and pytest
# make bench  the benchmarks of tests/benchmarks
# make gpu    the check for a machine with CUDA, at most 8 minutes; no network needed where gpu-wheels/ has been filled
# make gpu-wheels  fill gpu-wheels/ for it (56 MB), for another Python: make gpu-wheels OPTIONS="--python 3.12"
# make train  collect the data, train and evaluate the shipped models again
# make docs   build the documentation into site/; warnings are errors
# make clean  remove caches and builds; `make distclean` removes .venv too
#
# For a bare Debian or Ubuntu with Python 3.10+. Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Software OpenGL for off-screen rendering: OSMesa where the system still has it, EGL everywhere.
GL := libegl1 libgl1 libgl1-mesa-dri libosmesa6
DATA ?= data
RUNS ?= runs
WHEELS ?= gpu-wheels
# On a machine without network there is no .venv, and the system's Python has torch.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: help install demo test browser bench gpu gpu-wheels train clean distclean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

install: $(STAMP)

demo: $(STAMP)
	@$(BIN)/python examples/sac_button_press.py

test: $(STAMP) browser
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/pytest

bench: $(STAMP)
	@for file in speed engine labels families serving; do echo "== $$file"; $(BIN)/python tests/benchmarks/$$file.py || exit 1; done

gpu:
	@$(GPU_PYTHON) -m tests.gpu --size full --wheels $(WHEELS) --out $(RUNS)/gpu

gpu-wheels: $(STAMP)
	@$(BIN)/python -m tests.gpu.wheels --folder $(WHEELS) $(OPTIONS)

# The recipe of the shipped models: collect, train, collect rollouts of agents that learn from that model, which show where
# it is wrong, train on, evaluate. Hours. TUNED is what `vlp-gym tune` said on five tasks left out of a training.
TEST_TASKS := button-press-v3 door-close-v3 drawer-close-v3 faucet-close-v3 window-open-v3
SIBLINGS := door-open-v3 drawer-open-v3 faucet-open-v3 window-close-v3
AGENTS := $(BIN)/vlp-gym collect metaworld --per-tier 0 --agent 12 --varied-share 0.3
TUNED ?= --base 0.1 --sharpness 20 --relevance-shift 0.5
STAGED := $(BIN)/vlp-gym train staged --precision bf16 --half $(TUNED) --steps 2000
ON := --learning-rate 7e-4 --relevance-steps 0 --init
train: $(STAMP)
	$(BIN)/vlp-gym collect metaworld --out $(DATA)/train --per-tier 18 --near-miss 10 --explore 30 --retreat 12 --apart 24 \
	  --varied-share 0.5
	$(BIN)/vlp-gym collect metaworld --out $(DATA)/eval --seed 1000 --tasks $(TEST_TASKS) $(SIBLINGS)
	$(STAGED) --split vlp --data $(DATA)/train --out $(RUNS)/staged-45
	$(AGENTS) --agent-model $(RUNS)/staged-45 --out $(DATA)/agents-45
	$(STAGED) --split vlp $(ON) $(RUNS)/staged-45 --data $(DATA)/train $(DATA)/agents-45 --out $(RUNS)/vlp-compact-45
	$(BIN)/vlp-gym eval --data $(DATA)/eval --split vlp --model $(RUNS)/vlp-compact-45
	$(STAGED) --split all --data $(DATA)/train --out $(RUNS)/staged-50
	$(AGENTS) --agent-model $(RUNS)/staged-50 --out $(DATA)/agents-50
	$(STAGED) --split all $(ON) $(RUNS)/staged-50 --data $(DATA)/train $(DATA)/agents-50 --out $(RUNS)/vlp-compact
	$(BIN)/vlp-gym eval --data $(DATA)/eval --split vlp --model $(RUNS)/vlp-compact

# $(call system-packages,NAMES): installs those that are missing, where the system has apt.
define system-packages
	@need=""; \
	if command -v dpkg-query >/dev/null 2>&1; then \
	  for package in $(1); do \
	    dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q 'install ok installed' || need="$$need $$package"; \
	  done; \
	  $(PYTHON) -c 'import ensurepip, venv' >/dev/null 2>&1 || need="$$need python3 python3-venv"; \
	fi; \
	if [ -n "$$need" ]; then \
	  if [ "$$(id -u)" -eq 0 ]; then sudo=""; else sudo="sudo"; fi; \
	  if [ -n "$$sudo" ] && ! command -v sudo >/dev/null 2>&1; then \
	    echo "Not root and no sudo: going on without$$need. If something fails, ask for these packages."; \
	  else \
	    echo "Installing system packages:$$need"; \
	    $$sudo apt-get update -qq || true; \
	    for package in $$need; do \
	      $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$package >/dev/null \
	        || echo "  $$package could not be installed; going on without it"; \
	    done; \
	  fi; \
	fi
endef

# The page for labels is tested in a real browser; without one, those tests are skipped.
browser: $(STAMP)
	$(if $(shell command -v chromium || command -v google-chrome),@true,$(call system-packages,chromium))

# System packages first (missing ones only), then the virtual environment. The stamp is written last, so a failed
# install starts again at the next call, and a finished one is skipped until pyproject.toml changes.
$(STAMP): pyproject.toml
	$(call system-packages,$(GL))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "vlp_gym needs Python 3.10 or newer, and $(PYTHON) is not: install one, then 'make $(MAKECMDGOALS) PYTHON=python3.x'."; \
	  exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { \
	  echo "No virtual environment could be made: 'apt-get install python3-venv' (for your Python version), then again."; \
	  exit 1; }
	@echo "Installing Python packages into .venv (some GB, some minutes the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[all]' || { \
	  echo "The installation failed. See the error above; most often the network or the disk (10 GB are needed). Then:"; \
	  echo "  make $(MAKECMDGOALS)       to go on where it stopped"; \
	  echo "  make distclean  to start afresh"; \
	  exit 1; }
	@touch $@

.PHONY: docs
docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	@rm -rf build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean
	@rm -rf .venv
