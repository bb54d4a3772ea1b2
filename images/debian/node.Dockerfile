# Runs Node jobs.
FROM cronium/base:debian

# From node.requirements.txt (cronium_worker/engine/nodejs.py): Debian's own release is out of support, and starts three
# times slower.
COPY nodejs/ /usr/local/
RUN ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm \
    && ln -s ../lib/node_modules/npm/bin/npx-cli.js /usr/local/bin/npx \
    && node --version

# Node looks for packages in every directory from the script's up to the root.
COPY helpers/node/ /node_modules/cronium/

USER 1000:1000
