# make repro runs the whole study, make test the checks; each sets up .venv by itself.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
PORT ?= 5000
LANES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help repro study test ui bench gpu readme soak clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.venv/.ready: requirements.lock pyproject.toml tools/setup.sh tools/uv.lock
	@tools/setup.sh "$(PYTHON)"

# One lane per core, one thread per process: a lane makes one stage after another. With --wait-for-lock
# one lane at a time changes DVC's files. The results do not depend on the number of lanes. Lanes write
# lines, because bars would overwrite each other. `sort` puts large fractions first: their burn-in is longer.
define dvc_repro
	dvc repro --glob 'split@*' sam
	stages=$$(dvc stage list --name-only) && for kind in 'propose|burn_in' labels tune mutual; do \
	  grep -E "^($$kind)@" <<< "$$stages" | sort -t- -k2 -rn | SEMIRES_PROGRESS=lines xargs -r -P $(LANES) -n 1 sh -c \
	    'dvc --wait-for-lock repro -s "$$0" || exit 255' || exit; \
	done
	dvc repro
endef

repro: .venv/.ready  ## the study of params.yaml, then its main table
	semires grid
	$(dvc_repro)
	-semires track sync
	semires summary

study: .venv/.ready  ## all tables on RefScenes, seeds 0-2; TABLES="1 7" makes a part; resumes if interrupted
	semires use experiments/study.yaml $(if $(TABLES),--tables "$(TABLES)")
	$(dvc_repro)
	-semires track sync
	semires summary
	semires use params.yaml.before

test: .venv/.ready  ## lint, types, tests
	ruff check .
	ruff format --check .
	mypy
	pytest -n 2 --dist loadfile --no-loadscope-reorder

ui: .venv/.ready  ## MLflow on 127.0.0.1
	semires track sync
	mlflow server --backend-store-uri sqlite:///mlflow.db --artifacts-destination mlartifacts \
	  --host 127.0.0.1 --port $(PORT) --workers 1

bench: .venv/.ready  ## every claim of speed, into reports/benchmarks.md
	python benchmarks/run_all.py

gpu:  ## tests and claims of speed on a GPU, into reports/gpu.md; does nothing without one
	python3 benchmarks/gpu.py

readme: .venv/.ready  ## copy the last results and seconds into README.md
	python tools/readme.py

soak: .venv/.ready  ## 200 kills of every kind of stage
	SEMIRES_KILLS=200 pytest -s tests/e2e -k "ends_with or killed_at_random" --timeout 0

clean:  ## remove all that can be made again, but not .venv, DVC's cache and data of your own
	rm -rf data/prepared data/splits data/raw/refscenes{,+,-g} data/raw/images/refscenes
	rm -rf runs proposals sam tune labels .work mlflow.db* mlartifacts
