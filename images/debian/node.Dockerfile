# Runs Node jobs.
FROM cronium/base:debian

RUN apt-get update \
    && apt-get install --yes --no-install-recommends nodejs npm \
    && find / -xdev -perm /6000 -exec chmod a-s {} + \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log

# Node looks for packages in every directory from the script's up to the root.
COPY helpers/node/ /node_modules/cronium/

USER 1000:1000
