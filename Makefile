# make quickstart   set up, prepare, train on the CPU, measure, and let the model answer: ten minutes on two cores
# make test         set up, lint, format check and the tests that need no GPU, no network and no patience
# make bench-gpu    on one CUDA GPU, with the PyTorch that is there: what the loop reaches
# make headline     on one CUDA GPU: five rows of Table 1 at the released size, three seeds; goes on where it stopped
PYTHON ?= python3
BIN = .venv/bin

quickstart: .venv/ready
	$(BIN)/python prepare.py prosqa --name=prosqa-small --fair=true --n_nodes=16 --min_hops=3 --max_hops=5
	$(BIN)/python train.py laptop
	$(BIN)/python -m nanococonut.evaluate
	$(BIN)/python sample.py

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "not slow and not gpu and not network"

bench-gpu: # meant to take less than 8 minutes
	$(PYTHON) -m nanococonut.bench gpt2 --device=cuda --repeats=10
	$(PYTHON) -m nanococonut.bench cpu --device=cuda
	$(PYTHON) prepare.py prosqa --name=bench-prosqa --train=2000
	$(PYTHON) train.py --task=bench-prosqa --device=cuda --stage_steps=40 --max_stage=6

headline: data/prosqa/meta.json
	$(PYTHON) -m nanococonut.table1 prosqa --jobs=3 --methods=coconut,cot,no_cot,pause_as_thought,no_thought

data/prosqa/meta.json:
	$(PYTHON) prepare.py prosqa

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.PHONY: quickstart test bench-gpu headline
