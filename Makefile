# `make help` says what there is. Nothing here needs an activated environment: set-up makes .venv by itself.
SHELL := bash
.DEFAULT_GOAL := help
BIN := .venv/bin
JOBS ?= 2
PROFILE ?= quick
SLOW ?=

.PHONY: help setup run foundation check test prepare readme bad-input docs fly bundle lab bench tflite export-report clean
help:      ## this list
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-13s %s\n", $$1, $$2}'
	@printf '%s\n' '' '  variables:' \
	  '  PYTHON=...     the interpreter for .venv (3.11 or 3.12)' \
	  '  PIP_ARGS=...   further arguments of pip install; the default torch of Linux is the CUDA build,' \
	  '                 so without a GPU give the index of CPU builds that PyTorch documents' \
	  '  PROFILE=full   for make run: 1000 drones instead of 64' \
	  '  SLOW=1         for make test: the tests that take minutes as well'

setup:     ## .venv with the locked packages and a compiled l2f (the other targets do this first)
	@PYTHON='$(PYTHON)' PIP_ARGS='$(PIP_ARGS)' tools/setup.sh

run: export WARM := $(PROFILE)
run: setup       ## drones, teachers, student, export, flights and the report: reports/quick
	$(BIN)/raptor_pipeline --profile $(PROFILE)

foundation: setup ## the student that is shipped: 1000 drones, teachers, three seeds, and what is known about them: reports/foundation, raptor_nb/weights
	$(BIN)/raptor_pipeline --profile full --report-dir reports/foundation --further 09_published_recipe,08_understand --ship raptor_nb/weights

check: setup     ## seconds: the library is what the notebooks export, notebooks are clean, README is up to date
	@$(BIN)/python -m pytest -q -o addopts= --no-header tests/test_hygiene.py

test: export OMP_NUM_THREADS := 1
test: check      ## every notebook and every test, with coverage (at least 85 %)
	@rm -f .coverage .coverage.*
	$(BIN)/nbdev_test --n_workers $(JOBS) --timing
	$(BIN)/python -m pytest -q -n $(JOBS) $(if $(SLOW),-m 'slow or not slow') --ignore=tests/test_hygiene.py \
	  --cov --cov-report=term --cov-fail-under=85

prepare: setup   ## after editing a notebook: export, clean, README, test
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python tools/readme.py
	$(MAKE) test

readme: setup    ## README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

bad-input: setup ## docs/bad_input.md, the table of mistakes and their answers, from the tests that make them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 0 -k 'bad or refused or unwritable or missing or no_space or sentence' --bad-input=docs/bad_input.md

docs: export OMP_NUM_THREADS := 1
docs: setup      ## the documentation in _docs/index.html, without Quarto
	$(BIN)/python tools/docs.py

fly: setup       ## the page on which drones fly, in build/fly.html: one file, no server
	$(BIN)/python tools/fly.py

bundle: setup    ## web/fly.js from web/src, after an edit there (needs Node.js and npm)
	@$(BIN)/python tools/fly.py --bundle

lab: setup       ## the notebooks in JupyterLab, beginning with the tour
	$(BIN)/jupyter lab nbs/tour.ipynb

bench: setup     ## the programs of benchmarks/, one after the other
	@shopt -s nullglob; files=(benchmarks/*.py); [ $${#files[@]} -gt 0 ] || echo 'no benchmarks yet: they would be benchmarks/*.py'; \
	for file in "$${files[@]}"; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

tflite: setup    ## TensorFlow 2.15 and onnx-tf on top, for the TFLite export (1.5 GB, Python 3.11)
	$(BIN)/pip install -q $(PIP_ARGS) -r requirements-tflite.lock -c <(grep -v '^l2f==' requirements.lock)

export-report: tflite ## every file of the shipped student made, flown, timed and weighed: reports/export, raptor_nb/weights
	rm -rf runs/export
	$(BIN)/raptor_export --model-path raptor_nb/weights/student.safetensors --output-dir runs/export --targets all --report-dir reports/export
	cp runs/export/student{.onnx,.sequence.onnx,.h,.h5,.json,.tflite,.float16.tflite,.int8.tflite} raptor_nb/weights/

clean:     ## what can be made again, except .venv and runs/
	rm -rf _proc _docs build jupyter_execute .cache .pytest_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
