# The newcomer's two commands: `make demo` runs the main job, `make test` passes the tests.
# Each makes .venv itself from the hash-locked requirements in deploy/.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: env demo test check format proof soak cluster benchmark gpu lock clean

env: .venv/.complete

# The stamp is written last, so that an interrupted installation starts again.
.venv/.complete: deploy/requirements-dev.txt setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else f"Lengthwise needs Python 3.11 to 3.13, but $(PYTHON) is {v[0]}.{v[1]}. Choose another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Each command is printed as you would type it.
demo: export PATH := $(CURDIR)/$(BIN):$(PATH)
demo: env
	@rm -rf build/demo && mkdir -p build/demo
	lengthwise sample temporal_order --output build/demo/raw.jsonl --num_records 4000
	lengthwise prepare build/demo/raw.jsonl --schema build/demo/raw.schema.yaml --output build/demo/dataset
	lengthwise inspect build/demo/dataset
	lengthwise verify build/demo/dataset
	lengthwise plan build/demo/dataset
	lengthwise train build/demo/dataset --output build/demo/run --epochs 15
	lengthwise evaluate build/demo/run build/demo/dataset
	lengthwise sample temporal_order --output build/demo/new.jsonl --num_records 1000 --seed 1
	lengthwise predict build/demo/run build/demo/new.jsonl --output build/demo/predictions
	@head -n 2 build/demo/predictions/part-*.jsonl
	lengthwise export build/demo/run --output build/demo/export
	mkdir build/demo/logs; \
	(for n in 1 1001 2001 3001; do sed -n "$$n,$$((n + 999))p" build/demo/raw.jsonl >> build/demo/logs/today.jsonl; sleep 3; done) & \
	lengthwise prepare build/demo/logs --schema build/demo/raw.schema.yaml --output build/demo/stream \
		--streaming --commit_interval 1s --idle 6s & stream=$$!; \
	lengthwise train build/demo/stream --output build/demo/follower --follow --idle 6s && wait $$stream
	@python -c 'import json; e = json.load(open("build/demo/run/evaluation-test.json")); \
		accuracy, records = e["metrics"]["accuracy"], e["records"]; \
		print(f"Reached {accuracy:.1%} accuracy on {records} test records that the model never saw (guessing: 25%)."); \
		print("In build/demo lie dataset/, run/, predictions/ and export/, a model that serves without Lengthwise,"); \
		print("and stream/ and follower/: a dataset that followed a growing file, and a run that followed it."); \
		raise SystemExit(None if accuracy >= 0.95 else "Expected at least 95%: something is wrong.")'

# Without the import rules, which `make check` runs. A test that does not end is stopped, named, and shown with the stacks
# of its threads. No test takes a tenth of this time.
test: HANG = -o faulthandler_timeout=300 -o faulthandler_exit_on_timeout=true
test: env
	$(BIN)/python -m pytest -m "not proof and not gpu and not cluster" --ignore tests/test_imports.py -n auto --maxprocesses 4 --dist worksteal $(HANG)

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "not proof" tests/test_imports.py

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The slow proofs: real data over three seeds, kills, gigabytes, damaged input, a bare worker environment. They include
# the tests of Hypothesis that `make test` runs too, with eight times the examples.
proof: env
	$(BIN)/python -m pytest -m "(proof or hypothesis) and not cluster" --hypothesis-profile proof

# A stream at 2,000 records a second for MINUTES: memory and open files stay flat, and every id is there once.
soak: MINUTES = 60
soak: env
	LENGTHWISE_SOAK_MINUTES=$(MINUTES) $(BIN)/python -m pytest -s -m proof tests/pipeline/streaming/test_soak.py

# `prepare` and `predict` on a Flink cluster of this machine, in less than 15 minutes after the first download; skipped
# without Java 11 or 17.
cluster: env
	$(BIN)/python -m pytest -m cluster -rs --durations 0

# What is claimed of speed and memory, each against the textbook way in the same run; goes to build/benchmarks.
benchmark: env
	$(BIN)/python tests/benchmarks/run.py

# What only a GPU shows, in less than six minutes; skipped without one. `make env` installs the CPU build of TensorFlow, so
# this needs an environment with the extra `gpu` instead of `cpu`: make gpu BIN=path/to/environment/bin
gpu:
	@test -x $(BIN)/python || { echo "$(BIN)/python does not exist. Install '.[pipeline,gpu,dev]' into an environment, and run: make gpu BIN=path/to/environment/bin"; exit 1; }
	$(BIN)/python -m pytest -m gpu -rA
	$(BIN)/python tests/benchmarks/gpu.py

# After a change of the dependencies in setup.py.
lock: env
	$(BIN)/uv pip compile setup.py --extra pipeline --extra cpu --extra dev --universal --generate-hashes \
		--python-version 3.11 --no-header --no-emit-index-url --quiet --output-file deploy/requirements-dev.txt

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
