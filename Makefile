# `make help` says what there is. Nothing here needs an activated environment: set-up makes .venv by itself.
SHELL := bash
.DEFAULT_GOAL := help
BIN := .venv/bin
JOBS ?= 2
PROFILE ?= quick
DEVICE ?= auto
SLOW ?=
NAME ?=
ROAD ?=
ENGINE ?=
LAB ?= runs/lab
COMPLETE ?=

.PHONY: help setup minute run foundation gpu reports check test notebooks tools prepare readme docs paper-pdf fly page bundle lab bench tflite export-report clean
help:      ## this list
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-13s %s\n", $$1, $$2}'
	@printf '%s\n' '' '  variables:' \
	  '  PYTHON=...     the interpreter for .venv (3.11 or 3.12)' \
	  '  PIP_ARGS=...   further arguments of pip install; the default torch of Linux is the CUDA build,' \
	  '                 so without a GPU give the index of CPU builds that PyTorch documents' \
	  '  PROFILE=full   for make run: the settings of the student that is shipped' \
	  '  ROAD=teachers  for make run and foundation: direct (from random weights), teachers (distillation), both' \
	  '  DEVICE=cuda:1  for make gpu: which device; auto is the first GPU, or a miniature on the CPU' \
	  '  ENGINE=slurm   for make run and foundation: where students, teachers and flights are computed: local, dask, slurm' \
	  '  NAME=quick     for make reports: which' \
	  '  LAB=nbs        for make lab: the notebooks of the clone themselves instead of copies in runs/lab' \
	  '  SLOW=1         for make test: the tests that take minutes as well' \
	  '  COMPLETE=1     for make test: what would be skipped because a tool is missing fails (make tools tflite)'
	@printf '%s\n' '' '  how long on two cores, set-up not counted:' \
	  '  setup          8 minutes from nothing (l2f is compiled, with clang)' \
	  '  seconds        check, readme, fly, bundle; half a minute: tflite; 2 minutes: tools, docs' \
	  '  minute         1 minute; run: 3 minutes; foundation ROAD=teachers: 32' \
	  '  test           11 minutes together with notebooks; SLOW=1 takes 20 more'

setup:     ## .venv with the locked packages and a compiled l2f (the other targets do this first)
	@PYTHON='$(PYTHON)' PIP_ARGS='$(PIP_ARGS)' tools/setup.sh

# opens a page where there is a screen, and says where it lies
open_page = if [ "$$(uname)" = Darwin ]; then open $(1); \
	elif [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] && command -v xdg-open >/dev/null; then xdg-open $(1); fi; \
	echo 'the page is $(CURDIR)/$(1): any browser opens it, without a server or a network'

minute: setup    ## from random weights to a student that flies, and the page on which it does: runs/minute/fly.html
	$(BIN)/raptor_train --output-dir runs/minute
	@$(BIN)/python tools/minute.py runs/minute/student.safetensors
	@$(call open_page,runs/minute/fly.html)

run: export WARM := $(PROFILE)
run: setup       ## both roads to a student, export, flights and the report: runs/quick/report
	$(BIN)/raptor_pipeline --profile $(PROFILE) $(if $(ROAD),--road $(ROAD)) $(if $(ENGINE),--engine $(ENGINE))

foundation: setup ## three students by the direct road, the best under all conditions: runs/full/report; studies where there are teachers
	$(BIN)/raptor_pipeline --profile full $(if $(ROAD),--road $(ROAD)) $(if $(ENGINE),--engine $(ENGINE)) --studies 09_published_recipe,08_understand

gpu: setup       ## what a GPU changes: the same gradients, steps a second, memory, seconds of a policy: runs/gpu/report_gpu
	$(BIN)/python tools/gpu.py --device $(DEVICE)

reports: setup   ## a finished run's report into reports/<NAME>, its weights into raptor_nb/weights; without NAME: which there are
	@$(BIN)/python tools/reports.py $(NAME)

check: setup     ## seconds: the library is what the notebooks export, notebooks are clean, README is up to date
	@$(BIN)/python -m pytest -q -o addopts= --no-header $(if $(COMPLETE),--no-skips) tests/test_hygiene.py

test: export OMP_NUM_THREADS := 1
test: check      ## every lesson of the notebooks and every test against the library, with coverage (at least 85 %)
	@rm -f .coverage .coverage.*
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal $(if $(SLOW),-m 'slow or not slow') $(if $(COMPLETE),--no-skips) --ignore=tests/test_hygiene.py \
	  --cov --cov-report=term --cov-fail-under=85

notebooks: export OMP_NUM_THREADS := 1
notebooks: setup ## every notebook by itself, as nbdev tests it: definitions and lessons in order
	$(BIN)/nbdev_test --n_workers $(JOBS) --timing

tools:           ## compilers, browser, emulator and whatever else the tests use, by apt-get (as root, or with sudo)
	@tools/system.sh

prepare: setup   ## after editing a notebook: export, clean, README, test
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python tools/readme.py
	$(MAKE) test

readme: setup    ## README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

docs: export OMP_NUM_THREADS := 1
docs: setup      ## the documentation in _docs/index.html, without Quarto
	$(BIN)/python tools/docs.py

paper-pdf: setup ## docs/paper.md as build/paper.pdf (needs Chromium: make tools)
	@$(BIN)/python tools/paper.py

fly:  ## opens web/fly.html, the page on which drones fly; nothing is installed for it
	@$(call open_page,web/fly.html)

page: setup      ## web/fly.html again, after the student was replaced or web/page.html was edited
	@$(BIN)/python tools/fly.py

bundle: setup    ## the page and its programs again, after an edit in web/src or a kernel that it trains by (needs Node.js, npm, clang: make tools)
	@$(BIN)/python tools/fly.py --bundle

lab: setup       ## copies of the notebooks (runs/lab) in JupyterLab, beginning with the tour
	@[ -e $(LAB) ] || $(BIN)/raptor_notebooks $(LAB)
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS) $(LAB)/guides/tour.ipynb

bench: setup     ## the programs of benchmarks/, one after the other
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

tflite: setup    ## TensorFlow 2.15 and onnx-tf on top, for the TFLite export (1.5 GB, Python 3.11)
	$(BIN)/pip install -q $(PIP_ARGS) -r requirements-tflite.lock -c <(grep -v '^l2f==' requirements.lock)

export-report: tflite ## every file of the shipped student made, flown, timed and weighed: runs/export/report
	rm -rf runs/export
	$(BIN)/raptor_export --model-path raptor_nb/weights/student.safetensors --output-dir runs/export --targets all --report-dir runs/export/report

clean:     ## what can be made again, except .venv and runs/
	rm -rf _proc _docs build jupyter_execute .cache .pytest_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
