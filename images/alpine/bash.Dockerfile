# Runs Bash jobs.
FROM cronium/base:alpine

RUN apk add --no-cache bash coreutils curl gawk grep jq sed \
    && find / -xdev -perm /6000 -exec chmod a-s {} +

COPY helpers/cronium.sh /usr/local/bin/cronium.sh
COPY helpers/preamble.bash /usr/local/lib/cronium/preamble.bash

USER 1000:1000
