# Runs Python jobs.
FROM cronium/base:alpine

RUN apk add --no-cache python3 py3-pip py3-requests py3-yaml \
    && find / -xdev -perm /6000 -exec chmod a-s {} +

COPY helpers/cronium.py helpers/cronium.pth helpers/cronium_gate.py helpers/0-cronium.pth /usr/local/lib/cronium/

# cronium.pth makes the module importable, and known to every script without an import; and a printed line go out at
# once, since Python keeps 8 kB back if stdout is a pipe. 0-cronium.pth, the first, makes an interpreter that is started
# before its job wait for it. The root filesystem is read-only for jobs, so the module is compiled here.
RUN site=$(python3 -c 'import site; print(site.getsitepackages()[0])') \
    && mkdir -p "$site" \
    && mv /usr/local/lib/cronium/*.pth "$site/" \
    && python3 -m compileall -q /usr/local/lib/cronium/cronium.py

USER 1000:1000
