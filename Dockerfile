# One image for every process of the platform: what runs is chosen by the command.
#
#   docker build -t quorate:local .
#
# Another package index: --build-arg PIP_INDEX_URL=…, and PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST, PIP_CERT likewise. They
# belong to the first two stages only, so nothing of them is in the image.

ARG PYTHON_TAG=3.11-slim-bookworm

FROM python:${PYTHON_TAG} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_CERT
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_PROGRESS_BAR=off PIP_ROOT_USER_ACTION=ignore

# Two environments: the tools that build stay behind in this stage, the other one goes into the image, without pip.
RUN python -m venv /opt/build && python -m venv --without-pip /opt/quorate
COPY docker/build.lock docker/runtime.lock /src/docker/
# Wheels only: nothing is compiled, so no compiler is wanted here either.
RUN /opt/build/bin/pip install --quiet --only-binary :all: --require-hashes -r /src/docker/build.lock
RUN /opt/build/bin/pip --python /opt/quorate/bin/python install --quiet --no-compile --only-binary :all: \
        --require-hashes -r /src/docker/runtime.lock

COPY shared /src/shared
COPY registry /src/registry
COPY config-center /src/config-center
COPY gateway /src/gateway
COPY services /src/services
RUN find /src -name pyproject.toml -printf '%h\n' \
        | xargs /opt/build/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /src/wheels \
    && /opt/build/bin/pip --python /opt/quorate/bin/python install --quiet --no-compile --no-deps --no-index \
        /src/wheels/*.whl
COPY docker/ready.py docker/start.py /opt/quorate/lib/
# Compiled once, here, and never checked against the source again: nothing of it changes, and nobody may write there.
RUN /opt/quorate/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/quorate/lib \
    && chmod -R a+rX,go-w /opt/quorate


# What every request goes through in the gateway, compiled (docs/internals/gateway.md). Compiler and tools stay behind in
# this stage; where no compiler can be had, this is said, and the gateway runs from its source.
FROM build AS compiled
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_CERT
RUN apt-get -qq update && apt-get -qq install --yes --no-install-recommends gcc libc6-dev || true
COPY docker/compile.lock /src/docker/
RUN /opt/build/bin/pip --python /opt/quorate/bin/python install --quiet --only-binary :all: \
        --require-hashes -r /src/docker/compile.lock
COPY scripts/compile_gateway.py scripts/translate_modules.py /src/scripts/
RUN cd /opt/quorate/lib/python3.11/site-packages/quorate_gateway/proxy && mkdir __compiled__ \
    && /opt/quorate/bin/python /src/scripts/compile_gateway.py --optional && chmod -R a+rX,go-w __compiled__


FROM python:${PYTHON_TAG}
LABEL org.opencontainers.image.title="Quorate" \
      org.opencontainers.image.description="Registry, config center, gateway and sample services on one replicated store" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"

# Volumes that are mounted here for the first time take owner and mode from these folders.
RUN groupadd --gid 10001 quorate \
    && useradd --no-log-init --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin quorate \
    && install -d -o 10001 -g 10001 -m 0700 /data /cluster /begun
COPY --from=build /opt/quorate /opt/quorate
COPY --from=compiled /opt/quorate/lib/python3.11/site-packages/quorate_gateway/proxy/__compiled__ \
        /opt/quorate/lib/python3.11/site-packages/quorate_gateway/proxy/__compiled__
# Some images of Python come without the bytecode of its own library; what our processes import of it is compiled here.
RUN /opt/quorate/bin/python -P -c 'import quorate_node.bootstrap, quorate_gateway.bootstrap, quorate_order.bootstrap, \
        quorate_inventory.bootstrap, quorate_order.migrate, quorate_inventory.migrate, quorate_cli.app, \
        quorate_cli.init, quorate_cli.setup, quorate_cli.config, quorate_cli.cluster'

# Safe path: a file in the working folder never stands in for a library.
ENV PATH=/opt/quorate/bin:$PATH PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /data
USER 10001:10001

# Control plane: HTTP, Raft peers. Gateway: clients, admin API. Services.
EXPOSE 8501 7501 8080 8090 8081
ENTRYPOINT ["quorate"]
CMD ["--help"]
