"""The page in a real browser, with what a job may put into its log and result to make it stand still."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.events import log_body
from cronium_worker.fleet.store import INDEX_KEY, Claim, JobStore, job_keys
from cronium_worker.models import ErrorInfo, Job, JobResult, Output, OutputFile
from tests.system.test_web import served

pytestmark = pytest.mark.attack

WAIT_MS = 60_000
LONGEST_S = 2.0  # a busy machine's; before, it was up to a minute
MIB = 1024 * 1024
CHUNK = 64 * 1024
WATCH = """
    window.longest = 0;
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) window.longest = Math.max(window.longest, entry.duration);
    }).observe({ type: "longtask", buffered: true });
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), chromium_sandbox=False)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(redis_url: str) -> Iterator[str]:
    with served(redis_url) as address:
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page that may not stand still for long, nor go wrong."""
    context = browser.new_context(base_url=address)
    context.add_init_script(WATCH)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    longest_s = page.evaluate("window.longest") / 1000
    context.close()
    assert errors == []
    assert longest_s < LONGEST_S


@pytest.fixture
def ended(redis_url: str) -> Iterator[Callable[..., str]]:
    """Makes a job that has ended; nothing is left of it."""
    with connect(redis_url) as redis:
        store, ids = JobStore(redis, result_ttl_s=600), []

        def make(*, log: str = "", error: str = "", metadata: dict[str, str] | None = None, **output: Any) -> str:
            script = {"type": "bash", "content": "x" * (MIB - 1)}
            job = Job.model_validate({"script": script, "metadata": metadata or {}})
            ids.append(job.id)
            store.register(job, task_id=job.id, queue="page-attacks")
            claim = store.claim(job.id, host="h1")
            assert isinstance(claim, Claim)
            for start in range(0, len(log), CHUNK):
                store.write(claim, [log_body("stdout", log[start : start + CHUNK])])
            info = ErrorInfo(type="script", message=error) if error else None
            result = JobResult(job_id=job.id, status="failed", error=info, output=Output(**output))
            store.finish(claim, result, "failed")
            return job.id

        yield make
        for job_id in ids:
            redis.delete(*job_keys(job_id))
            redis.zrem(INDEX_KEY, job_id)
            store.settle(job_id)


def shown(page: Page, job_id: str, last: str) -> None:
    """Wait until the log is on the page, and use it."""
    page.goto(f"/#/jobs/{job_id}")
    expect(page.locator(".job-head .status")).to_have_text("failed")
    expect(page.locator(".log-row").last).to_contain_text(last)
    page.get_by_label("Search the log").fill("a")
    expect(page.locator(".log-count")).not_to_have_text("")
    page.locator(".log-box").evaluate("box => { box.scrollTop = 0; box.scrollLeft = 1e6 }")
    page.get_by_label("Streams").select_option("stdout")
    page.wait_for_timeout(300)


@pytest.mark.parametrize(
    ("log", "last"),
    [
        ("\x1b[31mred \x1b[42mand green \x1b[0m" * (4 * MIB // 24) + "\nlast", "last"),
        ("a" * (16 * MIB), "more characters"),
        ("\x1b[31m" * 1_000_000 + "a", "more characters"),
        ("a\n" * 200_000 + "last", "last"),
        (("\x1b[31ma\x1b[0m" * 400 + "\n") * 1000 + "last", "last"),
        (("a" * 4000 + "\n") * 4000 + "last", "last"),
        ("a\r" * 1_000_000 + "last", "last"),
        (("\x1b[" + "1;" * 30_000) * 20 + "\nlast", "last"),
        ("\u202e\u0301" * 500_000 + "\nlast", "last"),
    ],
    ids=["colours", "one-line", "sequences", "lines", "coloured-lines", "long-lines", "returns", "parameters", "marks"],
)
def test_a_log_does_not_freeze_the_page(page: Page, ended: Callable[..., str], log: str, last: str) -> None:
    shown(page, ended(log=log), last)


def test_a_log_of_long_coloured_lines_looks_right(page: Page, ended: Callable[..., str]) -> None:
    job_id = ended(log="\x1b[31mred\x1b[0m plain\n" + "\x1b[32mgreen " * 10_000 + "\n\x1b[0mlast")
    page.goto(f"/#/jobs/{job_id}")
    rows = page.locator(".log-row")
    expect(rows).to_have_count(3)
    expect(rows.nth(1)).to_contain_text("more characters are in the download alone")
    colours = [rows.nth(row).locator("span").nth(1).evaluate("span => getComputedStyle(span).color") for row in (0, 1)]
    assert len({*colours, rows.nth(0).locator("span").nth(2).evaluate("span => getComputedStyle(span).color")}) == 3


def test_a_result_does_not_freeze_the_page(page: Page, ended: Callable[..., str]) -> None:
    deep: Any = "end"
    for _ in range(140):
        deep = [deep]
    file = OutputFile(size=1, sha256="0" * 64, content="YQ==")
    job_id = ended(
        error="e" * MIB,
        metadata={f"name-{number}": "m" * 1000 for number in range(60)},
        data=[deep, *([] for _ in range(500_000)), "d" * MIB],
        variables={f"v{number}" * 10: number for number in range(20_000)},
        files={f"{number:05}-" + "n" * 200: file for number in range(5000)},
        notes=tuple(f"{number} " + "n" * 200 for number in range(5000)),
    )
    page.goto(f"/#/jobs/{job_id}")
    expect(page.locator(".error-box p")).to_contain_text("eee")
    expect(page.locator("ul.files li")).to_have_count(200)
    page.wait_for_load_state("networkidle")  # it is drawn once more when its events have come
    page.get_by_role("button", name="4,800 more").first.click()
    expect(page.locator("ul.files li")).to_have_count(400)
    page.get_by_text("The job as it was given").click()
    expect(page.locator(".definition .code")).to_contain_text("xxx")
    lengths = [len(page.locator(text).text_content() or "") for text in (".error-box p", ".definition .code")]
    assert lengths == [20_000] * 2, "of a text its beginning is shown"
