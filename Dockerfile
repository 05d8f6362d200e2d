# draftline on a CPU.   docker build -t draftline .   docker run -p 8000:8000 -v draftline:/var/cache/draftline draftline
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
# Which torch, and from which wheel index: the default index holds CUDA builds on x86-64, several GB of them.
ARG TORCH=torch>=2.9
ARG TORCH_INDEX=
RUN python3 -m venv /opt/draftline
RUN /opt/draftline/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} "${TORCH}"
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY engine ./engine
COPY server ./server
RUN /opt/draftline/bin/pip install --no-cache-dir . \
 && find /opt/draftline -name __pycache__ -prune -exec rm -rf {} +

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="draftline" \
      org.opencontainers.image.description="Inference server for GPT-style language models" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent draftline \
 && install -d -o draftline -g draftline /var/cache/draftline
COPY --from=build /opt/draftline /opt/draftline
ENV PATH=/opt/draftline/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DRAFTLINE_HOST=0.0.0.0 \
    DRAFTLINE_CACHE_DIR=/var/cache/draftline
USER 10001:10001
WORKDIR /tmp
VOLUME /var/cache/draftline
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
  CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["draftline"]
CMD ["serve"]
