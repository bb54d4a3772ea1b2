# What every runner is made from. For machines that reach a registry; ../debian has the same, line by
# line, for those that do not.
FROM alpine:3.22

RUN apk add --no-cache ca-certificates tini tzdata

# HOME is /tmp: the only place of a job's root filesystem, besides /workspace, that can be written.
RUN addgroup -g 1000 cronium \
    && adduser -u 1000 -G cronium -D -H -h /tmp -s /bin/sh cronium \
    && rm -f /etc/passwd- /etc/group- /etc/shadow- \
    && install -d -o 1000 -g 1000 /workspace

# The launcher's shell: a program that its user cannot read is one whose memory the user cannot read either.
RUN install -d /usr/local/lib/cronium && install -m 711 /bin/sh /usr/local/lib/cronium/sh

# Nothing in a container may gain rights by being executed.
RUN find / -xdev -perm /6000 -exec chmod a-s {} +

WORKDIR /workspace
ENTRYPOINT ["/sbin/tini", "-g", "--"]
