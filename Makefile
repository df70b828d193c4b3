# The newcomer's two commands: `make demo` runs the main job, `make test` passes the tests.
# Each makes .venv itself from the hash-locked requirements in deploy/.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: env demo test check format proof lock clean

env: .venv/.complete

# The stamp is written last, so that an interrupted install is started anew.
.venv/.complete: deploy/requirements-dev.txt setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else f"Lengthwise needs Python 3.11 to 3.13, but $(PYTHON) is {v[0]}.{v[1]}. Choose another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: env
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash deploy/demo.sh build/demo

test: env
	$(BIN)/python -m pytest -m "not proof"

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The slow proofs: real data over three seeds, kills, a bare worker environment.
proof: env
	$(BIN)/python -m pytest -m proof

# After a change of the dependencies in setup.py.
lock: env
	$(BIN)/uv pip compile setup.py --extra pipeline --extra cpu --extra dev --universal --generate-hashes \
		--python-version 3.11 --no-header --no-emit-index-url --quiet --output-file deploy/requirements-dev.txt

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
