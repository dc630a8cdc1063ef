# One command per intent. Every intent sets up `.venv` by itself; running it again installs nothing.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# What runs on every core at once is limited to the cores there are.
JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

# uv does not read pip's settings; wheels that this machine keeps for pip serve uv as well.
WHEELS := $(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))
UV_INSTALL = VIRTUAL_ENV=.venv UV_FIND_LINKS="$(WHEELS)" $(or $(shell command -v uv),$(BIN)/uv) pip install --quiet -c constraints.txt
# Without such wheels, let uv choose PyTorch's build for this machine's accelerator (a CPU build is a tenth of the size).
TORCH_BACKEND = $(if $(strip $(WHEELS)),,--torch-backend auto)

.PHONY: help setup demo test test-quick test-gpu hostile check format bench clean
help:
	@echo "make demo        pretrain on real pictures for about three minutes, evaluate, write a report"
	@echo "make test        all tests but the campaigns of make hostile (test-quick: without the slow ones; test-gpu: those that need a GPU)"
	@echo "make hostile     attacks with damaged files, kills and signals; N=100000 for a night of them"
	@echo "make check       lint, formatting, types          make format   mend what can be mended"
	@echo "make bench       speed, as ratios against named baselines"
	@echo "make setup       only the virtual environment      make clean    remove it"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "MIRA needs Python 3.11 or newer; '$(PYTHON)' is older or missing. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "setting up .venv (once)"; rm -rf .venv; $(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }; }
	@command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@$(UV_INSTALL) $(TORCH_BACKEND) -e '.[dev]' || \
		{ echo "trying again with the default build of PyTorch"; $(UV_INSTALL) -e '.[dev]'; }
	@touch $@

demo: $(READY)
	@$(BIN)/mira pretrain --recipe demo --out runs/demo --overwrite
	@$(BIN)/mira evaluate knn runs/demo --k 20 --floors --shift 2 --clusters
	@$(BIN)/mira report runs/demo

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not gpu" --ignore tests/hostile --jaxtyping-packages=mira,beartype.beartype

test-quick: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not gpu and not slow" --ignore tests/hostile --jaxtyping-packages=mira,beartype.beartype

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

# Damaged files, kills, signals, full disks: N tries in all, from the seed SEED.
N ?= 5000
SEED ?= 0
hostile: $(READY)
	MIRA_HOSTILE_TRIES=$(N) MIRA_HOSTILE_SEED=$(SEED) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/hostile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf .venv dist build
