# Runs Bash jobs.
FROM cronium/base:debian

RUN apt-get update \
    && apt-get install --yes --no-install-recommends bash coreutils curl gawk grep jq sed \
    && find / -xdev -perm /6000 -exec chmod a-s {} + \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log

COPY helpers/cronium.sh /usr/local/bin/cronium.sh
COPY helpers/preamble.bash /usr/local/lib/cronium/preamble.bash

USER 1000:1000
