# What every runner is made from. cronium/rootfs:debian is the distribution's own packages, imported:
# no registry is needed (cronium_worker/engine/rootfs.py). ../alpine has the same, line by line.
FROM cronium/rootfs:debian

RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates passwd tini tzdata \
    && ln -s /usr/bin/tini /sbin/tini \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log

# HOME is /tmp: the only place of a job's root filesystem, besides /workspace, that can be written.
RUN groupadd --gid 1000 cronium \
    && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /tmp --shell /bin/sh cronium \
    && rm -f /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- \
    && install -d -o 1000 -g 1000 /workspace

# The launcher's shell: a program that its user cannot read is one whose memory the user cannot read either.
RUN install -d /usr/local/lib/cronium && install -m 711 /bin/sh /usr/local/lib/cronium/sh

# Nothing in a container may gain rights by being executed.
RUN find / -xdev -perm /6000 -exec chmod a-s {} +

WORKDIR /workspace
ENTRYPOINT ["/sbin/tini", "-g", "--"]
