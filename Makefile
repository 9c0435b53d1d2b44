# Each target does its own set-up. Nothing is needed beforehand but Python 3.11 or newer, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SET_UP := $(VENV)/.set-up
DEV := $(VENV)/.dev
TESTS := -n 2

.PHONY: demo bench docs test test-slow test-heavy test-oldest check simulate truth real smallworld audit-dependencies clean

demo: $(SET_UP)
	$(BIN)/rankscope demo

test: $(DEV)
	$(BIN)/python -m pytest $(TESTS)

# What needs minutes, a browser or the folder of real data; a part whose needs are missing is skipped and says so.
test-slow: $(DEV)
	$(BIN)/python -m pytest -m "slow or shared or browser" -rs --durations=10 $(TESTS)

# What needs a cluster on this machine, a large download, or many minutes alone; not part of the gate.
test-heavy: $(DEV)
	$(BIN)/python -m pytest -m heavy -rs --durations=10

# The oldest transformers and peft that the metadata allows. What they warn of by themselves is no failure there.
OLDEST := .venv-oldest
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	grep -vE '^(transformers|peft|tokenizers|huggingface_hub|trl)==' constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(OLDEST)/constraints.txt \
		--editable ".[dev]" transformers==5.4.0 peft==0.21.0
	$(OLDEST)/bin/python -m pytest -W default $(TESTS)

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports --no-cache
	$(BIN)/python docs/generate_measures.py --check
	$(BIN)/python docs/generate_study_file.py --check
	$(BIN)/python docs/generate_methods.py --check
	$(BIN)/python docs/generate_findings.py --check
	$(BIN)/python recipes/peft_options.py --check

# This package and the tools people use today, on the same work, in turn; then one matrix rank by rank, packs on a GPU,
# time as work grows, and what plan forecast beside what was measured: two hours or so. One part of the first alone:
#   make bench BENCH="--part scoring --base smallworld"
bench: $(VENV)/.bench
	$(BIN)/python benchmarks/bench.py $(BENCH)
ifndef BENCH
	$(BIN)/python benchmarks/spectra.py
	$(BIN)/python benchmarks/packs.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/forecast.py
endif

# The site, in docs/_build; a broken link or a docstring that cannot be parsed fails it.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo docs/_build/index.html

# How often the intervals hold and the rule errs, over thousands of simulated studies; an hour or so.
simulate: $(SET_UP)
	$(BIN)/python benchmarks/simulate.py --studies 2000 --out docs/simulation.md

# Verdicts from few seeds, judged by many seeds that were really trained; an hour or two, and it goes on where it stopped.
truth: $(SET_UP)
	$(BIN)/python benchmarks/truth.py

# The paper's question on SmolLM2-135M-Instruct, some hours on two processor cores; it goes on where it stopped. The data
# come from the hub, or from a folder of the same sets: make real DATA=FOLDER
real: $(VENV)/.real
	$(BIN)/python recipes/real_study.py --publish $(if $(DATA),--data $(DATA))

# Pretrain the small world's two bases again, from a seed; some minutes each.
smallworld: $(SET_UP)
	$(BIN)/python recipes/pretrain_smallworld.py --seed 0 --out build/smallworld/base
	$(BIN)/python recipes/pretrain_smallworld.py --plain --seed 0 --out build/smallworld/plain

# The installed packages against the public list of known vulnerabilities, which needs the network; not part of the gate.
AUDIT := build/audit
audit-dependencies: $(SET_UP)
	$(PYTHON) -m venv --clear $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(AUDIT)/bin/python recipes/audit_dependencies.py "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
	status=$$?; rm -rf $(AUDIT); exit $$status

$(SET_UP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.real: $(SET_UP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[gguf]"
	touch $@

$(DEV): $(SET_UP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

$(VENV)/.bench: $(SET_UP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[bench]"
	touch $@

$(VENV)/.docs: $(SET_UP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build dist results docs/_build
