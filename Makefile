# make demo   the main job on real photographs        make test   the test suite
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SPEC := pyproject.toml constraints.txt
# Processes that share the test files.
JOBS ?= 2

.PHONY: demo test test-long test-oldest test-openclip lint bench lite clean

demo: $(VENV)/.demo
	$(BIN)/outclass demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not long" -n $(JOBS) --dist loadfile

# Slow by nature: soak, kill, two scans at once.
test-long: $(VENV)/.dev
	$(BIN)/python -m pytest -m long

# The oldest supported release of every dependency of the core (oldest.txt).
test-oldest: build/oldest/.done
	build/oldest/bin/python -m pytest -m "not long" --ignore tests/test_install.py

build/oldest/.done: oldest.txt pyproject.toml
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip --disable-pip-version-check --quiet install --requirement oldest.txt --editable .
	touch $@

# The open_clip encoders against open_clip itself, in an environment of their own (6 GB).
test-openclip: build/openclip/.done
	build/openclip/bin/python -m pytest tests/openclip

build/openclip/.done: openclip.txt pyproject.toml
	$(PYTHON) -m venv build/openclip
	build/openclip/bin/python -m pip --disable-pip-version-check --quiet install --requirement openclip.txt --editable .
	touch $@

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python bench/scan.py

# Builds the bundled encoder again, in an environment of its own (tools/lite/README.md).
lite: build/lite/.venv/.done
	PYTHONPATH=src build/lite/.venv/bin/python -m tools.lite.build

build/lite/.venv/.done: tools/lite/requirements.txt
	$(PYTHON) -m venv build/lite/.venv
	build/lite/.venv/bin/python -m pip --quiet install -r $<
	touch $@

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.created $(SPEC)
	$(PIP) install --constraint constraints.txt --editable ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.created $(SPEC)
	$(PIP) install --constraint constraints.txt --editable ".[dev]"
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist outclass-demo
