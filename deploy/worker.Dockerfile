# Runs each of the fleet's processes: worker, beat, Flower, the command `cronium`. From the check-out's directory:
#
#   docker build --file deploy/worker.Dockerfile --tag cronium/worker .
#
# Where no package index can be reached from a build, fetch the packages outside, with a Python of the image's version:
#
#   pip download --dest deploy/wheels --requirement requirements.txt hatchling
#   docker build --file deploy/worker.Dockerfile --build-arg PIP_NO_INDEX=1 --tag cronium/worker .
#
# Any Debian or Ubuntu with Python 3.11 or newer will do.
ARG BASE=debian:bookworm-slim
# hadolint ignore=DL3006
FROM ${BASE} AS python

# The base may be an image for jobs. The worker gives workspaces to the jobs' user and talks to the engine.
# hadolint ignore=DL3002
USER 0

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates nftables python3 python3-venv tini tzdata \
    && python3 -m venv /opt/cronium \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log

FROM python
ARG PIP_NO_INDEX=
# There need be no such files.
COPY requirements.txt deploy/wheels/*.whl /opt/wheels/
RUN /opt/cronium/bin/pip install --no-cache-dir --disable-pip-version-check --no-input \
        --find-links /opt/wheels --requirement /opt/wheels/requirements.txt

COPY LICENSE README.md pyproject.toml /opt/source/
COPY helpers/ /opt/source/helpers/
COPY images/ /opt/source/images/
COPY deploy/seccomp/ /opt/source/deploy/seccomp/
COPY cronium_worker/ /opt/source/cronium_worker/
RUN /opt/cronium/bin/pip install --no-cache-dir --disable-pip-version-check --no-input \
        --find-links /opt/wheels --no-deps /opt/source \
    && rm -r /opt/source

# For settings of before, when the profile was not the default.
COPY deploy/seccomp/cronium.json /etc/cronium/seccomp.json

ENV PATH=/opt/cronium/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /
ENTRYPOINT ["tini", "--"]
CMD ["cronium", "worker"]
