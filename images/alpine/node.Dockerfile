# Runs Node jobs.
FROM cronium/base:alpine

RUN apk add --no-cache nodejs npm \
    && find / -xdev -perm /6000 -exec chmod a-s {} +

# Node looks for packages in every directory from the script's up to the root.
COPY helpers/node/ /node_modules/cronium/

USER 1000:1000
