# `lastword serve` in a container; engine/serve/README.md says how to build and run it.
# For NVIDIA GPUs build it with --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS base
# An image without Python, such as CUDA's, gets its distribution's, and the compiler that Triton needs on a GPU.
# hadolint ignore=DL3008
RUN if ! command -v python3 > /dev/null; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev python3-venv \
        && rm -rf /var/lib/apt/lists/*; \
    fi

FROM base AS build
# Address of one more index, such as PyTorch's own with its smaller builds for CPUs.
ARG PIP_EXTRA_INDEX_URL=
WORKDIR /src
COPY LICENSE README.md constraints.txt pyproject.toml ./
COPY bench bench
COPY engine engine
COPY kernels kernels
COPY weights weights
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/lastword \
    && /opt/lastword/bin/python -m pip install --constraint constraints.txt '.[serve]'

FROM base
RUN groupadd --gid 10001 lastword \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /cache lastword \
    && install --directory --owner=10001 --group=10001 /cache
COPY --from=build /opt/lastword /opt/lastword
# All that is written, apart from /tmp, is below /cache: downloaded models, and kernels compiled for a GPU.
ENV PATH=/opt/lastword/bin:${PATH} \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    PYTHONDONTWRITEBYTECODE=1
VOLUME ["/cache"]
USER 10001:10001
EXPOSE 8080
# Unhealthy while the models are loading and while the server is stopping. A proxy of the environment is not asked.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python3", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["lastword", "serve", "--host", "0.0.0.0", "--port", "8080"]
# A container's port can be published to everybody, so by default the server asks for keys.
CMD ["--api-key-file", "/run/secrets/lastword-keys"]
