# syntax=docker/dockerfile:1
# The server: `docker build --target cpu .`, or `--target cuda`, which has CuPy and NVRTC and takes the driver from the host.
# What of it can be is tried without Docker by tests/image.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
# The compiler makes the host's copies quicker (kernels/host/streaming_copy.c), and stays behind in this stage.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY clients clients
COPY examples/__init__.py examples/__init__.py
COPY examples/demo examples/demo
COPY service service
COPY kernels kernels
COPY telemetry telemetry
RUN pip install --constraint constraints.txt '.[server,kv-events]' \
 && kvdepot precompile

FROM build AS build-cuda
# 12 for drivers from 525 on, 13 for those from 580 on.
ARG CUDA=12
RUN pip install --constraint constraints.txt ".[server,kv-events,cuda${CUDA}]"

FROM python:${PYTHON}-slim-bookworm AS runtime
LABEL org.opencontainers.image.title=kvdepot \
      org.opencontainers.image.description="A node-local depot for the KV cache of LLM inference engines" \
      org.opencontainers.image.licenses=Apache-2.0
RUN groupadd --gid 10001 kvdepot \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin kvdepot \
 && mkdir -p /run/kvdepot /var/cache/kvdepot \
 && chown 10001:10001 /run/kvdepot /var/cache/kvdepot
# The addresses are variables, so that `docker run IMAGE serve --l1-size 8GiB` keeps them. They override a --config file; a
# flag or `--env` overrides them.
# Nothing is written but to /run/kvdepot, /var/cache/kvdepot and /tmp: the rest may be read-only. CuPy and the driver keep
# compiled kernels in the cache.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    CUPY_CACHE_DIR=/var/cache/kvdepot/cupy \
    CUDA_CACHE_PATH=/var/cache/kvdepot/cuda \
    KVDEPOT_LISTEN=0.0.0.0:50051,unix:/run/kvdepot/kvdepot.sock \
    KVDEPOT_PROMETHEUS_HOST=0.0.0.0
WORKDIR /tmp
EXPOSE 50051 9464
# As numbers, so that Kubernetes can tell that it is not root.
USER 10001:10001
# Through the socket, which stays without TLS.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-m", "kvdepot.cli.health", "--address", "unix:/run/kvdepot/kvdepot.sock"]
ENTRYPOINT ["kvdepot"]
CMD ["serve"]

FROM runtime AS cuda
COPY --from=build-cuda /opt/venv /opt/venv

FROM runtime AS cpu
COPY --from=build /opt/venv /opt/venv
