# What the images of KServe's own servers are like, for `scripts/images --upstream` to compare with: its
# SDK with the storage clients, and the framework at the version that the server locks, without compiled
# modules. The code of a server itself is a few kilobytes, and left out.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG UV_VERSION=0.13.9
ARG PIP_INDEX_URL
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir --disable-pip-version-check "uv==${UV_VERSION}"
WORKDIR /src
COPY scripts/lock.py scripts/
ARG REQUIREMENTS
# hadolint ignore=SC2086
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    settings=$(/opt/uv/bin/python scripts/lock.py settings) \
    && eval "${settings}" \
    && python -m venv --without-pip /prod_venv \
    && /opt/uv/bin/uv pip install --quiet --no-cache --no-config --python /prod_venv \
        "kserve[storage]==0.21.0" ${REQUIREMENTS}

FROM ${PYTHON_IMAGE}
ARG SYSTEM_PACKAGES=""
# hadolint ignore=DL3008,SC2086
RUN if [ -n "${SYSTEM_PACKAGES}" ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends ${SYSTEM_PACKAGES} \
        && rm -rf /var/lib/apt/lists/*; \
    fi \
    && useradd kserve --uid 1000 --create-home --home-dir /home/kserve
COPY --from=build --chown=1000 /prod_venv /prod_venv
USER 1000
ENTRYPOINT ["/prod_venv/bin/python"]
