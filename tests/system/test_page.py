"""The web page in a real browser, beside a real worker: what a person sees and does."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import ip_network
from pathlib import Path
from uuid import uuid4

import docker
import pytest
from playwright.sync_api import Browser, Locator, Page, Request, Route, expect, sync_playwright

from cronium_worker import Job, cancel, schedules, submit, workflows
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.hosts import HostRegistry
from cronium_worker.fleet.store import INDEX_KEY, job_keys
from cronium_worker.tasks import store
from tests.system.conftest import Fleet
from tests.system.test_web import TOKEN, served

WAIT_MS = 30_000
LINES = 100_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not work for root.
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), chromium_sandbox=False)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(fleet: Fleet) -> Iterator[str]:
    with served(fleet.environment["CRONIUM_REDIS_URL"], **fleet.environment) as address:
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """Whatever goes wrong in the page's own code fails the test."""
    context = browser.new_context(base_url=address)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []


@pytest.fixture
def run(fleet: Fleet) -> Iterator[Callable[..., str]]:
    """Submit a script; it is at its end when the test is."""
    ids: list[str] = []

    def run(content: str, *, type: str = "python", **fields: object) -> str:  # noqa: A002 - the field's name
        job = Job.model_validate({"script": {"type": type, "content": content}, "queue": fleet.queue, **fields})
        ids.append(submit(job).id)
        return job.id

    yield run
    for job_id in ids:
        cancel(job_id)
        for _ in store().follow(job_id):
            pass


def row(page: Page, number: int) -> Locator:
    """A line of the log, by its number."""
    return page.locator(".log-row", has=page.get_by_text(str(number), exact=True).and_(page.locator(".log-number")))


def status(page: Page, name: str) -> None:
    expect(page.locator(".job-head .status")).to_have_text(name)


def test_submit_watch_reload_cancel(page: Page, fleet: Fleet) -> None:
    page.goto("/#/new")
    page.get_by_label("Python").check()
    page.get_by_label("Script").fill(
        "import time\nn = 0\nwhile True:\n    n += 1; print('tick', n); time.sleep(0.05)\n"
    )
    page.get_by_text("Where and how").click()
    page.get_by_label("Queue").fill(fleet.queue)
    page.get_by_label("Script").press("Control+Enter")

    status(page, "running")
    expect(row(page, 3)).to_contain_text("tick 3")
    page.reload()
    status(page, "running")
    expect(row(page, 40)).to_contain_text("tick 40")
    page.get_by_label("Follow").uncheck()
    page.locator(".log-box").evaluate("box => { box.scrollTop = 0 }")
    for number in range(1, 21):
        expect(row(page, number)).to_contain_text(f"tick {number}")

    page.get_by_role("button", name="Cancel").click()
    status(page, "cancelled")
    expect(page.locator(".error-box h2")).to_contain_text("cancelled")
    expect(page.locator(".way li")).to_have_text(
        [re.compile(name) for name in ("pending", "preparing", "running", "cancelled")]
    )


def test_a_tab_that_nobody_sees_holds_no_connection_and_misses_nothing(
    page: Page, run: Callable[..., str], fleet: Fleet
) -> None:
    def see(*, hidden: bool) -> None:
        page.evaluate(
            "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
            " document.dispatchEvent(new Event('visibilitychange')); }",
            hidden,
        )

    job_id = run("import time\nfor n in range(1, 61):\n    print('tick', n); time.sleep(0.05)\n")
    page.goto(f"/#/jobs/{job_id}")
    expect(row(page, 3)).to_contain_text("tick 3")
    see(hidden=True)
    seen = page.locator(".log-row").count()
    for event in store().follow(job_id):
        assert event["v"] == 1
    assert page.locator(".log-row").count() <= seen + 1
    see(hidden=False)
    status(page, "completed")
    for number in range(45, 61):
        expect(row(page, number)).to_contain_text(f"tick {number}")
    expect(row(page, 61)).to_have_count(0)


def test_what_is_lost_on_its_way_is_asked_for_again(page: Page, fleet: Fleet) -> None:
    """Chromium on a Docker host drops requests when a container's network interface comes or goes. Here each is dropped
    twice, a job that has reached the server among them."""
    dropped: Counter[tuple[str, str]] = Counter()

    def drop(route: Route, request: Request) -> None:
        key = (request.method, request.url)
        if request.is_navigation_request() or dropped[key] == 2:
            return route.continue_()
        dropped[key] += 1
        if request.method == "POST":
            route.fetch()
        return route.abort("connectionreset")

    page.route("**/*", drop)
    page.goto("/#/new")
    page.get_by_label("Script").fill("echo once")
    page.get_by_text("Where and how").click()
    page.get_by_label("Queue").fill(fleet.queue)
    before = store().redis.zcard(INDEX_KEY)
    page.get_by_role("button", name="Run").click()
    status(page, "completed")
    expect(row(page, 1)).to_contain_text("once")
    assert store().redis.zcard(INDEX_KEY) == before + 1
    expect(page.locator("header")).to_have_css("display", "flex")
    assert {url.rpartition("/")[2] for _, url in dropped} >= {"style.css", "main.mjs", "session", "jobs", "events"}


def test_output_files_and_run_again(page: Page, run: Callable[..., str], fleet: Fleet, tmp_path: Path) -> None:
    job_id = run(
        "cronium.output({'n': 7})\ncronium.set_condition(True)\nopen('/workspace/output/kept.txt', 'w').write('kept')\n"
    )
    page.goto(f"/#/jobs/{job_id}")
    status(page, "completed")
    expect(page.locator(".json").first).to_have_text(re.compile(r'"n": 7'))
    expect(page.locator(".condition")).to_have_text("true")
    expect(page.locator("dd", has_text=fleet.queue)).to_have_count(1)
    with page.expect_download() as download:
        page.get_by_role("link", name="kept.txt").click()
    download.value.save_as(tmp_path / "got")
    assert (tmp_path / "got").read_text() == "kept"

    page.get_by_role("button", name="Run again").click()
    page.wait_for_url(lambda url: "/#/jobs/" in url and job_id not in url)
    status(page, "completed")
    again = page.url.rpartition("/")[2]
    assert json.loads(store().record(again)["job"])["script"]["content"].startswith("cronium.output(")


def test_edit_as_new_keeps_all_fields_of_the_job(page: Page, run: Callable[..., str]) -> None:
    fields = {"environment": {"A": "1=2"}, "network": {"mode": "none", "dns": ["10.0.0.1"]}, "metadata": {"team": "x"}}
    job_id = run("print(1)", timeout=77, input_data={"a": [1]}, **fields)
    page.goto(f"/#/jobs/{job_id}")
    status(page, "completed")
    page.get_by_role("button", name="Edit as new").click()
    expect(page.get_by_label("Time, s")).to_have_value("77")
    page.get_by_label("Script").fill("print(2)")
    page.get_by_role("button", name="Run").click()
    page.wait_for_url(lambda url: "/#/jobs/" in url)
    status(page, "completed")
    old, new = (json.loads(store().record(i)["job"]) for i in (job_id, page.url.rpartition("/")[2]))
    assert new["script"].pop("content") == "print(2)"
    old["script"].pop("content")
    assert {**new, "id": ""} == {**old, "id": ""}


def test_what_is_refused_is_said_at_the_form(page: Page) -> None:
    page.goto("/#/new")
    page.get_by_label("Input (JSON)").fill("{not json")
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".problem")).to_contain_text("input_data: not JSON")
    page.get_by_label("Input (JSON)").fill("")
    page.get_by_label("Memory").fill("much")
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".problem")).to_contain_text("resources.memory: ")
    expect(page.get_by_label("Memory")).to_be_focused()


def test_what_a_script_prints_is_text_and_never_page(page: Page, run: Callable[..., str]) -> None:
    evil = "<img src=x onerror='document.title=1'><script>document.title=2</script>"
    job_id = run(f"print({evil!r}); cronium.output({{{evil!r}: {evil!r}}}); raise SystemExit({evil!r})")
    page.goto(f"/#/jobs/{job_id}")
    status(page, "failed")
    expect(row(page, 1)).to_contain_text(evil)
    assert page.locator("main img, main script").count() == 0


def test_a_hundred_thousand_lines(page: Page, run: Callable[..., str]) -> None:
    job_id = run(
        f"import sys\nfor n in range(1, {LINES}):\n    print(f'\\033[3{{n % 8}}mline {{n}} ' + 'x' * 60 + '\\033[0m')\n"
        "sys.stdout.flush()\nprint('the needle', file=sys.stderr)"
    )
    for _ in store().follow(job_id):
        pass
    page.goto(f"/#/jobs/{job_id}")
    expect(row(page, LINES)).to_be_visible()
    assert page.locator(".log-row").count() < 200
    assert page.evaluate("performance.memory.usedJSHeapSize") < 150e6

    page.get_by_label("Search the log").fill("line 777 ")
    expect(page.locator(".log-count")).to_have_text("1 of 1")
    expect(row(page, 777).locator("mark")).to_have_text("line 777 ")
    page.locator(".log-box").evaluate("box => { box.scrollTop = 0 }")
    expect(row(page, 1)).to_contain_text("line 1 x")
    expect(row(page, 1).locator("span").nth(1)).to_have_css("color", re.compile("rgb"))
    page.get_by_label("Streams").select_option("stderr")
    expect(page.locator(".log-row")).to_have_count(1)
    expect(page.locator(".log-row")).to_contain_text("the needle")


def test_the_list_is_live_and_filtered(page: Page, run: Callable[..., str], fleet: Fleet) -> None:
    page.goto(f"/#/jobs?queue={fleet.queue}")
    expect(page.locator("table.jobs")).to_be_visible()
    job_id = run("import time; time.sleep(60)")
    line = page.locator("tbody tr", has_text=job_id)
    expect(line.locator(".status")).to_have_text("running")
    page.get_by_role("button", name="completed").click()
    expect(line).to_have_count(0)
    page.get_by_role("button", name="running").click()
    expect(line).to_have_count(1)
    cancel(job_id)
    expect(line).to_have_count(0)


def test_ten_thousand_jobs(page: Page, fleet: Fleet) -> None:
    queue = f"many-{uuid4().hex[:8]}"
    redis = connect(fleet.environment["CRONIUM_REDIS_URL"])
    ids = [f"{queue}-{number:05}" for number in range(10_000)]
    with redis.pipeline(transaction=False) as pipe:
        for number, job_id in enumerate(ids):
            state = "failed" if number % 2 else "completed"
            created = f"2026-01-01T00:00:{number // 1000:02}.{number % 1000:03}000Z"
            fields = {
                "id": job_id,
                "status": state,
                "type": "bash",
                "queue": queue,
                "attempt": 1,
                "created_at": created,
            }
            pipe.hset(job_keys(job_id)[0], mapping={"job": "{}", **fields})
            pipe.zadd(INDEX_KEY, {job_id: 4e12 + number})
        pipe.execute()
    try:
        page.goto("/#/jobs")
        expect(page.locator("tbody tr")).to_have_count(100)
        expect(page.locator("tbody tr").first).to_contain_text(ids[-1])
        page.get_by_role("button", name="Older jobs").click()
        expect(page.locator("tbody tr")).to_have_count(200)
        expect(page.locator("tbody tr").last).to_contain_text(ids[-200])
        page.goto("/#/jobs?status=failed")
        expect(page.locator("tbody tr")).to_have_count(100)
        expect(page.locator("tbody tr").last).to_contain_text(ids[-199])
    finally:
        redis.delete(*(job_keys(job_id)[0] for job_id in ids))
        redis.zrem(INDEX_KEY, *ids)
        redis.close()


def test_a_workflow_is_shown_and_followed(page: Page, run: Callable[..., str], fleet: Fleet) -> None:
    def step(name: str, code: str, **fields: str) -> dict[str, object]:
        return {"name": name, "job": {"script": {"type": "bash", "content": code}, "queue": fleet.queue}, **fields}

    first, *_ = workflows.start(
        {
            "steps": [
                step("check", "sleep 1; cronium_set_condition false"),
                step("mend", "echo mended", on="condition"),
                step("tell", "echo told", after="check", on="not_condition"),
            ]
        }
    )
    page.goto(f"/#/jobs/{first.job_id}")
    steps = page.locator(".steps li")
    expect(steps).to_have_text(
        [re.compile(r"^check.*"), re.compile("^mend.*on condition of check"), re.compile("^tell")]
    )
    expect(steps.locator(".status")).to_have_text(["completed", "cancelled", "completed"])
    page.get_by_role("link", name="tell").click()
    expect(row(page, 1)).to_contain_text("told")
    expect(page.get_by_role("link", name="tell")).to_have_attribute("aria-current", "page")


def test_a_schedule_is_kept_paused_and_removed(page: Page, fleet: Fleet) -> None:
    name = f"page-{uuid4().hex[:8]}"
    page.goto("/#/new")
    page.get_by_text("Again and again").click()
    page.get_by_label("Schedule's name").fill(name)
    page.get_by_label("or every").fill("soon")
    page.get_by_role("button", name="Keep schedule").click()
    expect(page.locator(".problem")).to_contain_text("every: not an interval")
    page.get_by_label("or every").fill("1h")
    page.get_by_role("button", name="Keep schedule").click()
    line = page.locator("tbody tr", has_text=name)
    expect(line).to_contain_text("every 3600 s")
    line.get_by_role("button", name="Pause").click()
    expect(line).to_contain_text("paused")
    page.on("dialog", lambda dialog: dialog.accept())
    line.get_by_role("button", name="Remove").click()
    expect(line).to_have_count(0)
    assert name not in [view.name for view in schedules.schedules()]


def test_hosts_and_drain(page: Page, fleet: Fleet) -> None:
    name = fleet.environment["CRONIUM_HOST_NAME"]
    registry = HostRegistry(store().redis, host_ttl_s=30)
    page.goto("/#/hosts")
    card = page.locator(".host", has=page.get_by_role("heading", name=name, exact=True))
    expect(card.locator(".status")).to_have_text("live")
    expect(card.locator("dd", has_text=fleet.queue)).to_have_count(1)
    try:
        card.get_by_role("button", name="Drain").click()
        expect(card.locator(".status")).to_have_text("draining")
        assert name in registry.drained()
        card.get_by_role("button", name="Take jobs again").click()
        expect(card.locator(".status")).to_have_text("live")
    finally:
        registry.undrain(name)


def test_log_in_beyond_loopback(browser: Browser, fleet: Fleet) -> None:
    """Without TLS, where browsers tell less of a request."""
    with closing(docker.from_env()) as client:
        own = str(ip_network(client.networks.get("bridge").attrs["IPAM"]["Config"][0]["Subnet"])[1])
    environment = {**fleet.environment, "CRONIUM_WEB__TOKEN": TOKEN, "CRONIUM_WEB__ADDRESS": own}
    with served(fleet.environment["CRONIUM_REDIS_URL"], **environment) as address, browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("That is not the token")
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Log in").click()
        expect(page.locator("table.jobs")).to_be_visible()
        page.reload()
        expect(page.locator("table.jobs")).to_be_visible()
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Token")).to_be_visible()
