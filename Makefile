# make demo    the main job, on any Linux machine: export, plugin, engines, validation, a picture
# make test    formatting, types, compiled libraries and all tests
# make lint    formatting and types only;  make format  formats the code
# make plugin  compiles the TensorRT plugin and the attention on GPUs and CPUs, where they are not up to date
# make ptx     the compiled kernels run on the CPU, all cases and mistakes, half an hour; needs nvcc
# make gpu     what can be proved on the GPU at hand, and a page about it; needs a driver, nvcc, torch; docs/gpu.md
# make soak    five minutes of mixed requests at a real server
# make mutation  plants 150 small mistakes, one at a time: the tests notice 93 % of them at least; 20 minutes
# make fuzz    the readers of the C++ runtime under libFuzzer, a minute each; needs Clang
# make wheel   wheels for x86-64 and 64-bit Arm with the compiled libraries inside, and the source distribution, in dist/
# make jetson  packages for Jetson Orin and Thor in dist/, cross-compiled; docs/jetson.md
# make clean   removes build/ and demo-output/
# Each but `make gpu` sets up what it needs in .venv and build/, and is quick once it is there. No other needs a GPU.
# `. .venv/bin/activate` puts trt-hspan on the PATH.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: help demo test ptx gpu soak mutation lint format plugin wheel jetson setup fuzz clean

help:
	@sed -n '/^# /!q; s/^# //p' Makefile

demo: setup plugin
	$(BIN)/trt-hspan demo -o demo-output

# Two processes with one thread each: on two cores, threads that wait for each other cost more than they do.
test: lint plugin
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

ptx: setup
	PYTHONPATH=.:tests $(BIN)/python -m ptx.run_all

# Without setup: a machine that is lent for an hour may have no network.
gpu:
	PYTHONPATH=. $(firstword $(wildcard $(BIN)/python) $(PYTHON)) -m tools.gpu_report $(GPU_OPTIONS)

soak: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/serving/test_load.py -m soak -s

mutation: setup plugin
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.mutation

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -r $(BIN)/clang-format --dry-run --Werror

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -r $(BIN)/clang-format -i

plugin: setup
	$(BIN)/trt-hspan plugin build
	$(BIN)/trt-hspan plugin build --cuda
	$(BIN)/trt-hspan plugin build --cpu

wheel: setup
	bash scripts/setup_cross.sh required
	$(BIN)/python scripts/build_wheels.py

jetson: setup
	bash scripts/setup_cross.sh required
	$(BIN)/python scripts/jetson_package.py --jobs 2

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt scripts/setup.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" bash scripts/setup.sh
	touch $@

fuzz: setup
	bash scripts/fuzz.sh

clean:
	rm -rf build demo-output gpu-report
