"""A secret that scripts do all with that scripts do, searched for in every place where it could end up."""

import json
import os
import re
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen
from uuid import uuid4

import docker
import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr

from cronium_worker import Job, JobFailed, execute_job, result
from cronium_worker.app import app
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.store import JobStore
from cronium_worker.models import JobResult
from cronium_worker.settings import Settings
from cronium_worker.tasks import store
from tests.conftest import wait_until
from tests.integration.scripts import LANGUAGES
from tests.own_redis import OwnRedis
from tests.registry import free_port
from tests.rig import RigWorker
from tests.system.conftest import CRONIUM, Fleet
from tests.system.local_host import LocalHost
from tests.system.sinks import Listener, files_below, hits, process_lists, redis_contents

TIMEOUT_S = 60
LOGIN = {"CRONIUM_FLOWER__USERNAME": "ada", "CRONIUM_FLOWER__PASSWORD": "lovelace-lovelace"}

# Prints, writes and sends it in every way; then ends with an error that says it.
TELLS = {
    "bash": r"""
echo "$TOKEN"; echo "$ODD" >&2; echo "$LINES"; env; declare -p ODD; printf '%q\n' "$ODD"
while read -r line; do echo "INFO: $line"; done <<<"$LINES"
echo "$LINES" | sed 's/$/\r/'
for before in "" a ab; do
  printf '%s%s' "$before" "$LINES$TOKEN" | base64
  printf '%s' "$before$ODD" | base64 | tr +/ -_
done
jq -rn 'env.ODD | @uri, @sh, @html, @json, @base64'
printf '%s' "${TOKEN:0:9}"; sleep 0.3; printf '%s\n' "${TOKEN:9}"
cronium_output "{\"of\": \"$TOKEN\"}"; cronium_set_variable "found" "$TOKEN"
echo "$LINES" >"$CRONIUM_OUTPUT_DIR/plain"; echo "$TOKEN" | base64 >"$CRONIUM_OUTPUT_DIR/encoded"
echo ok >"$CRONIUM_OUTPUT_DIR/$TOKEN.txt"; ln -s /etc/passwd "$CRONIUM_OUTPUT_DIR/link-$TOKEN"
exec -a "$TOKEN" bash -c 'ls "/$ODD"; exit 3'
""",
    "python": r"""
import base64, json, os, sys, urllib.parse
token, odd, lines = os.environ["TOKEN"], os.environ["ODD"], os.environ["LINES"]
print(token, [odd], lines, json.dumps({"a": odd}), dict(os.environ), os.environb)
for line in lines.splitlines():
    print("INFO:", line, base64.b64encode(line.encode()).decode())
for before in ("", "a", "ab"):
    print(base64.encodebytes((before + lines + token).encode()).decode())
    print(base64.urlsafe_b64encode((before + odd).encode()).decode(), file=sys.stderr)
print(urllib.parse.quote(odd), urllib.parse.quote(odd, safe=""), urllib.parse.urlencode({"q": odd}), odd.encode().hex())
cronium.output({token: [odd, lines], "n": {"deep": base64.b64encode(token.encode()).decode()}})
cronium.set_variable("found", {"x": lines})
out = os.environ["CRONIUM_OUTPUT_DIR"]
for name, content in (("plain", lines), ("encoded", base64.b64encode(odd.encode()).decode()), (token, "ok")):
    open(f"{out}/{name}", "w").write(content)
raise RuntimeError(f"no login with {token} {odd!r} {lines}")
""",
    "node": r"""
const { TOKEN, ODD, LINES } = process.env
console.log(TOKEN, [ODD], LINES, JSON.stringify({ a: ODD }), process.env)
for (const line of LINES.split("\n")) console.log("INFO:", line)
for (const before of ["", "a", "ab"]) {
  console.log(Buffer.from(before + LINES + TOKEN).toString("base64"))
  console.error(Buffer.from(before + ODD).toString("base64url"))
}
console.log(encodeURIComponent(ODD), encodeURI(ODD), new URLSearchParams({ q: ODD }).toString())
cronium.output({ [TOKEN]: [ODD, LINES] })
cronium.setVariable("found", { x: LINES })
const fs = require("fs"), out = process.env.CRONIUM_OUTPUT_DIR
fs.writeFileSync(`${out}/plain`, LINES); fs.writeFileSync(`${out}/encoded`, Buffer.from(ODD).toString("base64"))
fs.writeFileSync(`${out}/${TOKEN}`, "ok")
throw new Error(`no login with ${TOKEN} ${ODD} ${LINES}`)
""",
}
# Say it, leave it in an output that is no JSON, and take the interpreter down.
CRASHES = {
    "bash": 'echo "$TOKEN"; echo "{\\"$TOKEN\\": 1, \\"$TOKEN\\": 2}" >$CRONIUM_OUTPUT_DIR/output.json; kill -SEGV $$',
    "python": """
import faulthandler, os
faulthandler.enable()
print(os.environ["LINES"], flush=True)
open("/workspace/output/output.json", "w").write('{"x": "' + os.environ["TOKEN"] + '", }')
os.abort()
""",
    "node": """
console.log(process.env.TOKEN)
require("fs").writeFileSync("/workspace/output/condition.json", process.env.TOKEN)
process.abort()
""",
}


def planted() -> dict[str, str]:
    mark = uuid4().hex
    return {
        "TOKEN": f"tok-{mark[:24]}",
        "ODD": f"p@ss/w&rd +{mark[:12]}='\"%",
        "LINES": f"-----BEGIN KEY-----\n{mark}{mark}\nlast/line+{mark[:10]}\n-----END KEY-----\n",
    }


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[OwnRedis]:
    """Its file has all that was ever written to it, also what was taken away since."""
    directory = tmp_path / "redis"
    directory.mkdir()
    with OwnRedis(directory) as server:
        yield server


@pytest.fixture
def host(redis: OwnRedis, settings: Settings, tmp_path: Path) -> Iterator[LocalHost]:
    path = tmp_path / "host"
    path.mkdir()
    host = LocalHost(settings.model_copy(update={"redis_url": SecretStr(redis.url)}), path)
    (path / "tmp").mkdir()
    host.env |= {"CRONIUM_SECRET_KEYS": Fernet.generate_key().decode(), "TMPDIR": str(path / "tmp")}
    yield host
    host.close()
    host.remove_containers()


SUBMIT = """
import json, sys
from celery import chain
from cronium_worker import execute_job
single, chained = json.load(sys.stdin)
for job in single:
    execute_job.delay(job)
chain(*(execute_job.si(job) for job in chained)).apply_async()
"""


def submit(host: LocalHost, single: list[dict[str, Any]], chained: list[dict[str, Any]]) -> None:
    text = json.dumps([single, chained])
    done = subprocess.run([sys.executable, "-c", SUBMIT], env=host.env, input=text, text=True, capture_output=True,
                          timeout=60, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture
def jobs(redis: OwnRedis) -> Iterator[JobStore]:
    with connect(redis.url) as client:
        yield JobStore(client, result_ttl_s=600)


@pytest.fixture
def listener(jobs: JobStore) -> Iterator[Listener]:
    with Listener(jobs.redis) as listener:
        yield listener


@pytest.fixture
def engine() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    yield client
    client.close()


def test_a_planted_secret_is_in_no_sink(
    host: LocalHost, jobs: JobStore, listener: Listener, engine: docker.DockerClient, tmp_path: Path
) -> None:
    secrets = planted()
    host.start(concurrency=4)
    beat = [CRONIUM.replace("cronium", "celery"), "--quiet", "-A", "cronium_worker.app", "beat", "--loglevel", "DEBUG"]
    host.process(*beat)
    port = free_port()
    host.process(CRONIUM, "flower", "--port", str(port), **LOGIN)

    def page(path: str, data: bytes | None = None) -> bytes:
        login = {"Authorization": "Basic " + b64encode(":".join(LOGIN.values()).encode()).decode()}
        with urlopen(Request(f"http://127.0.0.1:{port}{path}", data=data, headers=login), timeout=20) as answer:
            return bytes(answer.read())

    def hears() -> bool:
        try:
            return f"jobs@{host.name}".encode() in page("/workers?json=1")
        except OSError:
            return False

    wait_until(hears, timeout_s=30, what="Flower hears the worker")

    def job(name: str, language: str, content: str, **more: Any) -> dict[str, Any]:
        script = {"type": language, "content": content}
        return {"id": f"{name}-{uuid4().hex[:8]}", "script": script, "secrets": secrets, "queue": host.queue, **more}

    # While one runs.
    waits = job("waits", "bash", 'echo "$TOKEN"; sleep 300')
    submit(host, [waits], [])
    wait_until(lambda: "***" in "".join(texts(jobs, waits["id"])), timeout_s=TIMEOUT_S, what="the waiting job's output")
    (container,) = engine.containers.list(filters={"label": f"cronium.job.id={waits['id']}"})
    own_processes = {int(row[1]) for row in container.top()["Processes"]}
    found = {"docker inspect": json.dumps(container.attrs).encode(), **dict(process_lists(not_of=own_processes))}
    raw_log = Path(engine.info()["DockerRootDir"]) / "containers" / container.id
    assert hits(secrets.values(), contents(files_below(raw_log))), "the engine's own log has it: so the search works"
    assert hits(secrets.values(), contents(process_lists(not_of=set()))), "the job's own environment has it"

    tells = [job("tells", language, TELLS[language]) for language in LANGUAGES]
    crashes = [job("crashes", language, CRASHES[language]) for language in LANGUAGES]
    again = job("again", "python", TELLS["python"], retry={"max_attempts": 2, "delay": 0})
    chained = [job("first", "bash", "echo $TOKEN"), job("second", "node", "console.log(process.env.LINES)")]
    submit(host, [*tells, *crashes, again], chained)
    jobs.cancel(waits["id"])
    everyone = [waits, *tells, *crashes, again, *chained]
    results = {one["id"]: finished(jobs, one["id"]) for one in everyone}

    # They have done what they were to do.
    assert results[chained[1]["id"]].status == "completed"
    for one in (*tells, again):
        told = results[one["id"]]
        assert told.status == "failed"
        assert told.output.files["plain"].content is None
        assert any("holds a secret" in note for note in told.output.notes)
        assert "***" in json.dumps(told.output.data)
        assert "".join(texts(jobs, one["id"])).count("***") > 10
    for one in crashes:
        assert results[one["id"]].exit_code in {134, 139, 133}, results[one["id"]]

    # And after.
    for one in everyone:
        assert not jobs.redis.exists(f"cronium:job:{{{one['id']}}}:secrets")
        page_path = f"/task/{one['id']}"
        found[f"Flower {page_path}"] = page(page_path)
    for path in ("/", "/workers", "/workers?json=1", "/tasks", "/broker", "/api/tasks", "/metrics"):
        found[f"Flower {path}"] = page(path)
    columns = "draw=1&start=0&length=500&order[0][column]=0&order[0][dir]=desc&columns[0][data]=received"
    found["Flower tasks"] = page("/tasks/datatable", columns.encode())
    assert tells[0]["id"].encode() in found["Flower tasks"]
    found |= redis_contents(jobs.redis)
    wait_until(lambda: not raw_log.exists(), what="the engine's log is gone")
    wait_until(lambda: not list(host.base_path.glob("*/sandboxes/*")), what="the jobs' files are gone")
    found["published"] = b"\n".join(listener.heard)
    assert b"celeryev" in found["published"]
    found |= files_below(tmp_path)
    assert any("appendonly" in name for name in found)
    assert {name: hit for name, data in found.items() if (hit := hits(secrets.values(), data))} == {}


def contents(found: Iterable[tuple[str, bytes]]) -> bytes:
    return b"\n".join(data for _, data in found)


def texts(jobs: JobStore, job_id: str) -> list[str]:
    return [event["data"] for event in jobs.events(job_id) if event["type"] == "log"]


def finished(jobs: JobStore, job_id: str) -> JobResult:
    def look() -> JobResult | None:
        return jobs.result(job_id) if jobs.redis.exists(f"cronium:job:{{{job_id}}}") else None

    outcome = wait_until(look, timeout_s=TIMEOUT_S, what=f"{job_id} ended")
    assert isinstance(outcome, JobResult)
    return outcome


# ---- producers in other languages

# Standard Fernet: version, time, initialisation vector, AES-128-CBC, HMAC-SHA256; the key is signing, then encryption.
NODE_SEAL = """
const { createCipheriv, createHmac, randomBytes } = require("crypto")
function seal(key, jobId, secrets) {
  const bytes = Buffer.from(key, "base64url"), iv = randomBytes(16), head = Buffer.alloc(9)
  head[0] = 0x80
  head.writeBigUInt64BE(BigInt(Math.floor(Date.now() / 1000)), 1)
  const cipher = createCipheriv("aes-128-cbc", bytes.subarray(16), iv)
  const text = JSON.stringify({ job_id: jobId, secrets })
  const body = Buffer.concat([head, iv, cipher.update(text, "utf8"), cipher.final()])
  const mac = createHmac("sha256", bytes.subarray(0, 16)).update(body).digest()
  const token = Buffer.concat([body, mac]).toString("base64")
  return token.replaceAll("+", "-").replaceAll("/", "_")
}
const [key, id] = process.argv.slice(1)
process.stdout.write(seal(key, id, { TOKEN: process.env.TOKEN }))
"""


def sealed_by_hand(job_id: str, token: str, key: str) -> str:
    content = json.dumps({"job_id": job_id, "secrets": {"TOKEN": token}}).encode()
    return Fernet(key.encode()).encrypt(content).decode()


def sealed_by_node(job_id: str, token: str, key: str) -> str:
    command = ["node", "-e", NODE_SEAL, "--", key, job_id]  # a key may begin with a dash
    return subprocess.run(command, env={**os.environ, "TOKEN": token}, capture_output=True, text=True, timeout=20,
                          check=True).stdout  # fmt: skip


def send(fleet: Fleet, job: Any, **options: Any) -> Any:
    return app.send_task("cronium.execute_job", args=[job], queue=fleet.queue, **options)


@pytest.mark.parametrize("seal", [sealed_by_hand, sealed_by_node])
def test_a_foreign_producer_sends_secrets_encrypted(fleet: Fleet, seal: Callable[[str, str, str], str]) -> None:
    job_id, token = uuid4().hex, f"tok-{uuid4().hex}"
    key = fleet.environment["CRONIUM_SECRET_KEYS"].split(",")[0]
    script = {"type": "bash", "content": 'echo "<$TOKEN>"; printf "{\\"length\\": ${#TOKEN}}" >output/output.json'}

    sent = send(fleet, {"id": job_id, "script": script, "secrets": seal(job_id, token, key)})

    outcome = sent.get(timeout=TIMEOUT_S)
    assert outcome["output"]["data"] == {"length": len(token)}
    assert texts(store(), job_id) == ["<***>\n"]


def test_a_foreign_message_may_be_delivered_twice(fleet: Fleet) -> None:
    job_id, key = uuid4().hex, fleet.environment["CRONIUM_SECRET_KEYS"]
    job = {"id": job_id, "script": {"type": "bash", "content": "true"}, "secrets": sealed_by_hand(job_id, "t", key)}

    first = send(fleet, job).get(timeout=TIMEOUT_S)

    assert send(fleet, job | {"secrets": sealed_by_hand(job_id, "t", key)}).get(timeout=TIMEOUT_S) == first


def refused(sent: Any) -> str:
    with pytest.raises(JobFailed) as caught:
        sent.get(timeout=TIMEOUT_S)
    error = caught.value.result.error
    assert error is not None
    assert (caught.value.result.status, error.type) == ("failed", "validation")
    assert result(caught.value.result.job_id) == caught.value.result
    return error.message


@pytest.mark.parametrize("by_keyword", [False, True])
def test_secrets_in_clear_are_refused_and_shown_nowhere(fleet: Fleet, by_keyword: bool) -> None:
    secrets, script = planted(), {"type": "bash", "content": "true"}
    clear = {"id": uuid4().hex, "script": script, "secrets": secrets}
    with connect(fleet.environment["CRONIUM_REDIS_URL"]) as redis, Listener(redis) as listener:
        arguments = {"kwargs": {"job": clear}} if by_keyword else {"args": [clear]}
        # What Celery's own producers and others say of the arguments in the message's headers.
        sent = app.send_task("cronium.execute_job", queue=fleet.queue, argsrepr=repr(clear), **arguments)

        message = refused(sent)

        assert "unencrypted" in message
        assert "CRONIUM_SECRET_KEYS" in message
        wait_until(lambda: clear["id"] in fleet.log.read_text(), what="the worker's log")
        found = dict(redis_contents(redis)) | {"log": fleet.log.read_bytes()}
        found["published"] = b"\n".join(text for text in listener.heard if b"task-sent" not in decoded(text))
        assert {name: hit for name, data in found.items() if (hit := hits(secrets.values(), data))} == {}


def decoded(message: bytes) -> bytes:
    """With the bodies of Celery's events in clear."""
    bodies = re.findall(rb'"body": ?"([A-Za-z0-9+/=]+)"', message)
    return b" ".join([message, *map(b64decode, bodies)])


@pytest.mark.parametrize("change", ["another key", "another job", "no token", "list"])
def test_secrets_that_cannot_be_opened_are_refused_with_the_remedy(fleet: Fleet, change: str) -> None:
    job_id, key = uuid4().hex, fleet.environment["CRONIUM_SECRET_KEYS"]
    secrets: dict[str, Any] = {
        "another key": sealed_by_hand(job_id, "hidden", Fernet.generate_key().decode()),
        "another job": sealed_by_hand("other", "hidden", key),
        "no token": "hidden",
        "list": ["hidden"],
    }

    message = refused(
        send(fleet, {"id": job_id, "script": {"type": "bash", "content": ""}, "secrets": secrets[change]})
    )

    assert "secrets" in message
    assert "hidden" not in message


def test_a_signature_has_secrets_encrypted_and_the_id_of_its_job() -> None:
    job = Job.model_validate({"script": {"type": "bash", "content": ""}, "secrets": {"TOKEN": "hunter2"}})

    for signature in (execute_job.si(job), execute_job.s(json.loads(job.to_json()))):
        assert "hunter2" not in json.dumps(signature)
        assert signature.args[0]["id"] == job.id == signature.freeze().id
        assert store().secrets.open(job.id, signature.args[0]["secrets"]) == {"TOKEN": "hunter2"}
    with pytest.raises(ValueError, match="execute_job"):
        job.__json__()


# ---- callers and workers without a key


def test_without_a_key_the_caller_is_told_before_anything_is_sent(fleet: Fleet, tmp_path: Path) -> None:
    script = tmp_path / "a.sh"
    script.write_text("true")
    waiting = app.connection().default_channel.client.llen(fleet.queue)

    done = fleet.cronium("run", str(script), "--secret", "TOKEN", "--queue", fleet.queue,
                         extra={"TOKEN": "hunter2", "CRONIUM_SECRET_KEYS": ""})  # fmt: skip

    assert done.returncode == 1
    assert done.stderr.startswith("cronium: secrets: there is no key")
    assert "cronium key" in done.stderr
    assert "CRONIUM_SECRET_KEYS" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "hunter2" not in done.stderr
    assert app.connection().default_channel.client.llen(fleet.queue) == waiting


def test_a_worker_with_another_key_ends_the_job_with_the_remedy(fleet: Fleet) -> None:
    other = JobStore(store().redis, result_ttl_s=600, secret_keys=[Fernet.generate_key().decode()])
    job = Job.model_validate({"script": {"type": "bash", "content": ""}, "secrets": {"A": "1"}, "queue": fleet.queue})
    other.register(job, task_id=job.id, queue=fleet.queue)

    message = refused(execute_job._send(job.id, "bash", 5, task_id=job.id, queue=fleet.queue))

    assert "CRONIUM_SECRET_KEYS" in message


def test_a_new_key_is_made_and_never_shown_again(fleet: Fleet) -> None:
    made = fleet.cronium("key").stdout.strip()

    shown = fleet.cronium("config", extra={"CRONIUM_SECRET_KEYS": f"{made},{made}"})

    assert Fernet(made)
    assert "CRONIUM_SECRET_KEYS=***,***\n" in shown.stdout
    assert made not in shown.stdout
    wrong = fleet.cronium("config", extra={"CRONIUM_SECRET_KEYS": f"{made},{made[:-2]}"})
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("cronium: CRONIUM_SECRET_KEYS: key 2 is none: make one with `cronium key`")
    assert made[:-2] not in wrong.stderr


# ---- what a job sees

LOOKS = r"""
env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\0' '\n' || true; cat /proc/self/mountinfo /proc/1/mountinfo
find / -xdev -path /usr -prune -o -type f -size -64k -readable -exec cat {} + 2>/dev/null | tr '\0' '\n' || true
find /workspace /tmp /run -type f -readable -exec cat {} + || true
ls -laR /workspace /tmp /run || true
"""


def test_a_job_sees_nothing_of_the_fleet_or_of_another_job(fleet: Fleet) -> None:
    neighbour_secret = f"tok-{uuid4().hex}"
    neighbour = execute_job.delay(
        {
            "script": {"type": "bash", "content": "echo up; sleep 60"},
            "secrets": {"S": neighbour_secret},
            "queue": fleet.queue,
        }
    )
    wait_until(lambda: texts(store(), neighbour.id), timeout_s=TIMEOUT_S, what="the neighbour runs")

    sent = execute_job.delay({"script": {"type": "bash", "content": LOOKS}, "queue": fleet.queue})

    sent.get(timeout=TIMEOUT_S)
    seen = "".join(texts(store(), sent.id))
    store().cancel(neighbour.id)
    assert f"CRONIUM_JOB_ID={sent.id}" in seen
    address = fleet.environment["CRONIUM_REDIS_URL"].split("//")[1]
    others = [address, fleet.environment["CRONIUM_SECRET_KEYS"], neighbour_secret, neighbour.id, "docker.sock"]
    assert [other for other in others if other in seen] == []


def test_what_waits_on_disk_while_redis_is_away_is_masked(host: LocalHost, redis: OwnRedis, jobs: JobStore) -> None:
    secrets = planted()
    worker = host.start(node="jobs")
    script = (
        'echo up; sleep 1; printf -v x %250s; for i in {1..30000}; do echo "$i $TOKEN $x"; done; echo $ODD; sleep 60'
    )
    job = {"id": uuid4().hex, "script": {"type": "bash", "content": script}, "secrets": secrets, "queue": host.queue}
    submit(host, [job], [])
    wait_until(lambda: texts(jobs, job["id"]), timeout_s=TIMEOUT_S, what="it runs")

    with redis.frozen():
        spooled = wait_until(lambda: spooled_by(worker, host.base_path), timeout_s=30, what="a spool")

    jobs.cancel(job["id"])
    finished(jobs, job["id"])
    assert b"***" in spooled
    assert hits(secrets.values(), spooled) == []


def spooled_by(worker: RigWorker, directory: Path) -> bytes:
    """What is in a worker's open files below a directory: they have no name."""
    found = b""
    for process in worker.processes():
        # A process or a file may be gone meanwhile.
        with suppress(OSError):
            for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
                path = descriptor.readlink()
                if directory in path.parents and descriptor.is_file():
                    found += descriptor.read_bytes()
    return found


# ---- one machine


def test_the_set_up_of_one_machine_makes_its_own_key(fleet: Fleet, tmp_path: Path) -> None:
    environment = {n: v for n, v in fleet.environment.items() if n != "CRONIUM_SECRET_KEYS"}
    state = tmp_path / "state"

    def key_of(*arguments: str) -> str:
        command = ["deploy/local/with-services.sh", *arguments, "printenv", "CRONIUM_SECRET_KEYS"]
        return subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, timeout=60, check=True
        ).stdout

    key = key_of("--state", str(state))

    assert Settings(secret_keys=key.strip()).secret_keys
    assert (state / "secret-key").stat().st_mode & 0o777 == 0o600
    assert key_of("--state", str(state)) == key
    assert key_of() != key
