# Everything a fresh machine needs: `make demo` and `make test` build their own environment first.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Processes that share the tests, file by file; each takes up to 4 GiB.
JOBS ?= 2
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test parity-full lint format bench bench-mid memory smoke clean

demo: $(VENV)/.base
	$(BIN)/python -m recapture_jax.main --config=configs/orbit.py

smoke: $(VENV)/.base
	$(BIN)/python -m recapture_jax.main --config=configs/orbit.py:smoke

test: $(VENV)/.test lint
	$(BIN)/python -m pytest -m "not full" -n $(JOBS) --dist loadfile

# One full-size U-Net (1.52 B random parameters) in float32 against diffusers: about 20 GB of memory.
parity-full: $(VENV)/.test
	$(BIN)/python -m pytest -m full -s

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test
	$(BIN)/python -m experiments.bench.steps

# About 100 M parameters, against compiled PyTorch.
bench-mid: $(VENV)/.test
	$(BIN)/python -m experiments.bench.steps --size=mid --reference=compiled

# Plans of XLA:CPU at full size, nothing runs: minutes.
memory: $(VENV)/.test
	$(BIN)/python -m experiments.bench.memory --stage=tune
	$(BIN)/python -m experiments.bench.memory --stage=tune --frames=25
	$(BIN)/python -m experiments.bench.memory --stage=sample --frames=14
	$(BIN)/python -m experiments.bench.memory --stage=sample --frames=25
	$(BIN)/python -m experiments.bench.memory --stage=sample --frames=14 --apart
	$(BIN)/python -m experiments.bench.memory --stage=sample --frames=25 --apart
	$(BIN)/python -m experiments.bench.memory --stage=decode
	$(BIN)/python -m experiments.bench.memory --stage=decode --chunk=5

$(VENV)/.base: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/.test: $(VENV)/.base
	$(PIP) -e ".[test,convert,eval]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
