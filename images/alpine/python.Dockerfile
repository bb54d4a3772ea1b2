# Runs Python jobs.
FROM cronium/base:alpine

RUN apk add --no-cache python3 py3-pip py3-requests py3-yaml \
    && find / -xdev -perm /6000 -exec chmod a-s {} +

COPY helpers/cronium.py helpers/cronium.pth /usr/local/lib/cronium/

# The path file makes the module importable, and known to every script without an import. The root
# filesystem is read-only for jobs, so the module is compiled here.
RUN site=$(python3 -c 'import site; print(site.getsitepackages()[0])') \
    && mkdir -p "$site" \
    && mv /usr/local/lib/cronium/cronium.pth "$site/" \
    && python3 -m compileall -q /usr/local/lib/cronium

USER 1000:1000
