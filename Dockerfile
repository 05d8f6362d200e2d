# draftline as a container: no root, a root file system that may be read-only, and no compiler but for a GPU's.
#
#   docker build -t draftline --build-arg TORCH_INDEX=<index URL of PyTorch's CPU wheels> .
#   docker run --read-only --tmpfs /tmp -p 8000:8000 -v draftline:/var/cache/draftline draftline
#   docker build -t draftline-cuda --build-arg VARIANT=cuda .
#   docker run --gpus all --read-only --tmpfs /tmp -p 8000:8000 -v draftline:/var/cache/draftline draftline-cuda
#
# Arguments: BASE_IMAGE, VARIANT (cpu or cuda: the build fails if the torch that pip chose is not of this kind),
# TORCH (which torch: 2.13.0, or a requirement), TORCH_INDEX (where from; the default index holds CUDA builds on x86-64, several GB of
# them), MODEL (a name of `draftline models` to bake in: then no volume and no network is needed),
# VERSION, REVISION and CREATED (for the labels).
ARG BASE_IMAGE=python:3.11-slim
ARG VARIANT=cpu

FROM ${BASE_IMAGE} AS build
RUN apt-get update -q \
 && apt-get install -y -q --no-install-recommends g++ python3-dev \
 && rm -rf /var/lib/apt/lists/*
ARG TORCH=torch>=2.9
# A version alone is pinned, as `TORCH=2.13.0 make install` does.
ARG TORCH_INDEX=
ARG VARIANT=cpu
RUN python3 -m venv /opt/draftline \
 && /opt/draftline/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} \
      "$(case "${TORCH}" in torch*) echo "${TORCH}" ;; *) echo "torch==${TORCH}" ;; esac)" \
 && VARIANT="${VARIANT}" /opt/draftline/bin/python -W ignore -c "import os, torch; \
      kind = 'cuda' if torch.version.cuda else 'cpu'; \
      assert kind == os.environ['VARIANT'], f'torch {torch.__version__} is a build for {kind}: set TORCH_INDEX or VARIANT'"
WORKDIR /src
COPY pyproject.toml README.md LICENSE setup.p[y] ./
COPY engine ./engine
COPY server ./server
RUN /opt/draftline/bin/pip install --no-cache-dir .
# What is inside, for scanners. The tool has an environment of its own and stays behind.
RUN python3 -m venv /opt/sbom \
 && /opt/sbom/bin/pip install --no-cache-dir "cyclonedx-bom>=7" \
 && /opt/sbom/bin/cyclonedx-py environment /opt/draftline/bin/python --pyproject pyproject.toml \
      --output-reproducible --output-file /opt/draftline/sbom.cdx.json
ARG MODEL=
RUN install -d /models \
 && if [ -n "${MODEL}" ]; then DRAFTLINE_CACHE_DIR=/models MODEL="${MODEL}" /opt/draftline/bin/python -c \
      "import os; from engine.checkpoint import load_checkpoint; load_checkpoint(os.environ['MODEL'])"; fi
# Headers, static libraries and torch's own tests serve no server. Byte code stays: or each start compiles it.
RUN cd /opt/draftline/lib/python3*/site-packages/torch \
 && rm -rf include test bin/*[Tt]est* bin/protoc* lib/*test*.so \
 && find /opt/draftline -name '*.a' -delete

FROM ${BASE_IMAGE} AS runtime-cpu

# Triton, which comes with torch's CUDA wheels and brings its own assembler (ptxas), builds its interface to the
# driver when it first runs: that takes a C compiler and the headers of libc and Python. No CUDA toolkit.
FROM ${BASE_IMAGE} AS runtime-cuda
RUN apt-get update -q \
 && apt-get install -y -q --no-install-recommends gcc libc6-dev \
 && if [ ! -e "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include", "posix_prefix"))')/Python.h" ]; then \
      apt-get install -y -q --no-install-recommends python3-dev; fi \
 && rm -rf /var/lib/apt/lists/*
# Compiled kernels lie in the cache volume. It must not be mounted noexec, as docker mounts a tmpfs.
# Triton asks ldconfig for libcuda.so.1 and then looks here: where the driver is mounted without ldconfig's cache
# being renewed (a read-only root), and where Kubernetes engines put it.
ENV TRITON_CACHE_DIR=/var/cache/draftline/triton \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64:/usr/lib/x86_64-linux-gnu:/usr/lib/aarch64-linux-gnu \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM runtime-${VARIANT}
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent draftline
COPY --from=build /opt/draftline /opt/draftline
COPY --from=build --chown=10001:10001 /models /var/cache/draftline
ENV PATH=/opt/draftline/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DRAFTLINE_HOST=0.0.0.0 \
    DRAFTLINE_LOG_FORMAT=json \
    DRAFTLINE_CACHE_DIR=/var/cache/draftline
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s CMD ["python3", "-c", \
  "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('DRAFTLINE_PORT', 8000)}/health\", timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["draftline"]
CMD ["serve"]
ARG VERSION=0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
ARG VARIANT=cpu
LABEL org.opencontainers.image.title="draftline" \
      org.opencontainers.image.description="Inference server for GPT-style language models (${VARIANT})" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
