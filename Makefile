# Targets set up what they need: .venv with pinned packages, and from apt Icarus Verilog, Yosys,
# nextpnr, g++ and clang where they are missing.
PYTHON ?= python3
BIN := .venv/bin
DEMO := build/demo

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: .venv/ready  ## train on digits, record a step, replay all vectors on the Verilog
	rm -rf $(DEMO)
	$(BIN)/emu train digits-mlp-int8 --out $(DEMO)/run --record $(DEMO)/step --baseline
	$(BIN)/emu cosim
	$(BIN)/emu cosim $(DEMO)/step

test: .venv/ready  ## lint, then all tests
	$(BIN)/ruff check
	$(BIN)/python -m pytest -q -n auto --dist worksteal

regression: .venv/ready  ## epochs in the Verilog, 100,000 products and 5,000 convolutions by every path
	$(BIN)/python tests/regression_rtl.py
	$(BIN)/python tests/regression.py
	$(BIN)/emu prove --second 1
	$(BIN)/emu mutate --gates
	[ "$$(uname -m)" != x86_64 ] || NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=+avx2,+fma \
		$(BIN)/python tests/regression.py --cases 10000 --convolutions 500 --sequences 0

prove: .venv/ready  ## prove that the Verilog equals its definition, by two solvers
	$(BIN)/emu prove --second 1

mutate: .venv/ready  ## change the Verilog in 1,500 small ways; the vectors must notice
	$(BIN)/emu mutate

vectors: .venv/ready  ## write vectors/ again; the bytes must not change
	$(BIN)/emu vectors --out vectors

bench: .venv/bench  ## compare speed with torch and other tools, in tables
	@for name in race gemm conv mlp nn casts compat monitor peers cosim; do \
		PYTHONPATH=benchmarks PATH="$(CURDIR)/$(BIN):$$PATH" \
		$(BIN)/python -c "import $$name; $$name.main()" || exit 1; done

setup: .venv/ready  ## only install

clean:  ## remove everything that was installed or built
	rm -rf .venv build dist runs

.venv/ready: pyproject.toml .ci/constraints.txt .ci/system-packages
	@PYTHON=$(PYTHON) sh .ci/system-packages
	@echo "installing the Python packages into .venv (a minute or two)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt \
		-e '.[train,hw,prove,dev,oracles]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt \
		--no-deps tosa-tools
	@touch $@

.venv/bench: .venv/ready
	@echo "installing the tools to compare with (qtorch compiles itself on its first use)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt \
		-e '.[bench]'
	@touch $@

.PHONY: help demo test regression prove mutate vectors bench setup clean
