# make demo    the main job, on any Linux machine: export, plugin, engines, validation, a picture
# make test    formatting, types and all tests
# Both set up what they need in .venv and build/, and are quick when that is done.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test soak lint format setup plugin jetson train clean help fuzz

help:
	@sed -n '1,3s/^# //p' Makefile

demo: setup plugin
	$(BIN)/trt-hspan demo -o demo-output

# Two processes with one thread each: on two cores, threads that wait for each other cost more than they do.
test: lint plugin
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# Five minutes and 2,000 mixed requests at a real server.
soak: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/serving/test_load.py -m soak -s

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -r $(BIN)/clang-format --dry-run --Werror

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -r $(BIN)/clang-format -i

# The library that TensorRT loads, and that of the attention on CPUs; does nothing when they are up to date.
plugin: setup
	$(BIN)/trt-hspan plugin build
	$(BIN)/trt-hspan plugin build --cpu

# Packages for Jetson Orin and Thor, into dist/: cross compiled here, no board and no GPU needed. docs/jetson.md
jetson: setup
	bash scripts/setup_cross.sh required
	$(BIN)/python scripts/jetson_package.py --jobs 2

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt scripts/setup.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" bash scripts/setup.sh
	touch $@

# Files from elsewhere: the readers of the C++ runtime, a minute each.
fuzz: setup
	bash scripts/fuzz.sh

clean:
	rm -rf build demo-output
