# The production image: the proxy alone. The tests and every build tool stay out of it.

# Both stages must start from the same image: the virtual environment points at its Python.
# Pin it by digest where builds must repeat exactly: --build-arg PYTHON_IMAGE=docker.io/library/python:3.13-slim@sha256:…
ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
WORKDIR /src

# Dependencies first: this layer is reused until a requirement changes. They come as hashed wheels, so that nothing is
# compiled and nothing runs while they are installed. The environment has no pip of its own: the image cannot install.
# Pillow is for the sandbox, which is no part of production, and for plans with `strip_metadata`: 22 MB. With
# --build-arg PICTURES=on it stays. It is a dependency, as pip installs no extra by itself and `pip install fal-proxy` is
# to give a `fal-proxy dev` that works.
ARG PICTURES=off
# With --build-arg OTEL=on the image can send traces (PROXY_OTLP_ENDPOINT): it has the extra `otel`.
ARG OTEL=off
COPY requirements/build.txt requirements/runtime.txt requirements/otel.txt requirements/sbom.txt requirements/
RUN python -m venv /opt/build \
 && /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements/build.txt \
 && python -m venv /opt/sbom \
 && /opt/sbom/bin/pip install --require-hashes --only-binary :all: -r requirements/sbom.txt \
 && python -m venv --without-pip /opt/fal-proxy \
 && /opt/build/bin/pip --python /opt/fal-proxy/bin/python install \
      --require-hashes --only-binary :all: \
      -r requirements/$([ "${OTEL}" = on ] && echo otel || echo runtime).txt \
 && { [ "${PICTURES}" = on ] || /opt/build/bin/pip --python /opt/fal-proxy/bin/python uninstall --yes pillow; }

COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY proxy/ proxy/
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheel . \
 && /opt/build/bin/pip --python /opt/fal-proxy/bin/python install --no-deps --no-index /wheel/*.whl \
 && /opt/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
      --output-file /opt/fal-proxy/sbom.cdx.json /opt/fal-proxy/bin/python

FROM ${PYTHON_IMAGE}
ARG VERSION=dev
# The commit that is built; empty if it is not known.
ARG COMMIT=
# Where the repository is, such as https://git.example.com/acme/fal-proxy; empty if it is not known.
ARG PROJECT_URL=
LABEL org.opencontainers.image.title="fal-proxy" \
      org.opencontainers.image.description="Holds your FAL_KEY on the server: sessions, limits and live queue updates" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.vendor="The fal-proxy authors" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.source="${PROJECT_URL}"

COPY --from=build /opt/fal-proxy /opt/fal-proxy

# The one directory that is written to: without PROXY_DATABASE_URL the SQLite file comes to lie in it. The root file
# system may be read-only. OpenShift runs the image as another user, of the group 0.
RUN install -d -o 10001 -g 0 -m 0770 /data
VOLUME ["/data"]
WORKDIR /data

# glibc's allocator, mallopt(3): memory goes back to the system from 8 MiB on, comes from it 1 MiB at a time, and a block
# comes and goes by itself from 4 MiB on. Else each piece of a file that passes through faults its pages in again.
ENV MALLOC_TRIM_THRESHOLD_=8388608 \
    MALLOC_TOP_PAD_=1048576 \
    MALLOC_MMAP_THRESHOLD_=4194304

ENV PATH=/opt/fal-proxy/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PROXY_STATE_DIR=/data \
    PROXY_COMMIT=${COMMIT} \
    PROXY_HOST=0.0.0.0 \
    PROXY_PORT=8787

# A number, not a name: Kubernetes can only verify `runAsNonRoot` for numbers.
USER 10001:10001
EXPOSE 8787

HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['PROXY_PORT'] + '/livez', timeout=2)"]

# Python is process 1 and takes SIGTERM itself: no shell stands between it and a clean drain.
ENTRYPOINT ["python", "-m", "proxy"]
CMD ["serve"]
