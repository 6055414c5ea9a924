# `make mnist` and `make test` work on a machine with Python 3.11 or newer, pip and make.
PYTHON ?= python3
OUT ?= runs/mnist
BIN := .venv/bin
# Two processes; a file's tests stay in one, where they share what was compiled. In their order, the longest are not last.
# Most of their time is the compiler's, which is faster where its threads do not share one arena of malloc's.
# Where a process of the tests ends, that is a failure: a new one in its place can leave the rest waiting for ever.
PYTEST := MALLOC_ARENA_MAX=8 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: mnist test slow parity parity-whole lint clean

mnist: .venv/installed
	$(BIN)/python -m experiments.classify --out $(OUT) --resume

test: .venv/installed
	$(PYTEST) -m "not peers and not slow"

# The tests that take longest, such as whole runs on sets made by hand.
slow: .venv/installed
	$(PYTEST) -m "slow and not peers"

# Against PyTorch and scikit-learn; on Python 3.11 pip finds a CPU build of torch.
parity: .venv/peers
	$(PYTEST) -m "peers and not slow"

# Every network beside its peer, the benchmark beside PyTorch.
parity-whole: .venv/peers
	$(PYTEST) -m peers

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[data,tensorboard,test]'
	touch $@

.venv/peers: .venv/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[peers,pretrained]'
	$(BIN)/python -m pip install --quiet --no-deps torchvision==0.28.0 timm==1.0.31 captum==0.9.0 grad-cam==1.5.7 ttach==0.0.3
	touch $@
