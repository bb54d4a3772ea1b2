"""Every command of the documentation, on a real fleet; and the site."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import SecretStr

from cronium_worker.models.result import ErrorType
from cronium_worker.settings import Settings
from tests import docs
from tests.docs import PAGES, ROOT, read
from tests.own_redis import OwnRedis
from tests.registry import free_port
from tests.system.conftest import CRONIUM
from tests.system.local_host import LocalHost

FETCHED = re.compile(r"""<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=["']?(https?:[^\s"'>]+)""")
WITH_COMMANDS = [path for path in PAGES if any(block.is_run for block in read(path).blocks)]
REMARKS = re.compile(r"|not run here: .{10,}|runs until it is stopped|its output is an example")


def name_of(path: Path) -> str:
    return path.stem


@pytest.fixture(scope="module")
def fleet(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHost]:
    """On a Redis of its own: the pages use the fleet's usual queue."""
    with OwnRedis(tmp_path_factory.mktemp("redis")) as redis:
        host = LocalHost(
            settings.model_copy(update={"redis_url": SecretStr(redis.url)}), tmp_path_factory.mktemp("host")
        )
        host.queue = "cronium.jobs"
        try:
            host.start(concurrency=4)
            yield host
        finally:
            host.close()
            host.remove_containers()


@pytest.fixture
def check_out(tmp_path: Path) -> Path:
    """A reader's: commands may write into it."""
    for name in ("deploy", "examples", "helpers"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(Path(CRONIUM).parents[1])
    for name, text in read(ROOT / "README.md").files.items():
        (tmp_path / name).write_text(text)
    # `cronium web &` takes a moment to listen.
    (tmp_path / ".curlrc").write_text("retry = 10\nretry-connrefused\nretry-delay = 1\nfail\n")
    return tmp_path


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=name_of)
def test_the_commands_of_a_page_do_what_it_says(path: Path, fleet: LocalHost, check_out: Path) -> None:
    page, port = read(path), free_port()
    for name, text in page.files.items():
        (check_out / name).write_text(text)
    env = fleet.env | {
        "HOME": str(check_out),
        "PATH": f"{Path(CRONIUM).parent}:{fleet.env['PATH']}",
        "CRONIUM_WEB__PORT": str(port),
    }
    names = {
        "redis://127.0.0.1:6390/0": fleet.env["CRONIUM_REDIS_URL"],
        "localhost:8700": f"localhost:{port}",
        "host-2": fleet.name,
    }
    assert docs.run([block for block in page.blocks if block.is_run], check_out, env, names) == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_what_commands_name_is_there_also_where_they_are_not_run(path: Path) -> None:
    page = read(path)
    complaints = [f"{block}: {what}" for block in page.blocks for what in docs.complaints(_typed(block))]
    for code in page.inline:
        if re.match(r"(cronium|make) [a-z]", code):
            meant = "\n".join(docs.alternatives(code))
            complaints += [f"{path.name}: `{code}`: {what}" for what in docs.complaints(meant)]
    assert complaints == []


def _typed(block: docs.Block) -> str:
    return "\n".join(command.text for command in docs.commands(block))


def test_a_block_that_is_not_run_has_a_reason_and_the_files_of_the_reason_are_there() -> None:
    blocks = [block for path in PAGES for block in read(path).blocks]
    assert [str(block) for block in blocks if not REMARKS.fullmatch(block.remark)] == []
    assert [f"{block}: {what}" for block in blocks for what in docs.complaints(block.remark)] == []
    assert sum(block.is_run for block in blocks) >= 15


def test_each_type_of_error_has_its_remedy() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert set(re.findall(r"^### (\w+)$", text, re.MULTILINE)) == set(get_args(ErrorType))


@pytest.mark.timeout(60)
def test_the_site_is_whole_and_asks_nobody_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=\"?(https?:[^\s\">]+)", page.read_text()
        )
        assert fetched == [], page
