"""Metrics, alerts and dashboard in the real Prometheus: rules and examples checked by its own tool, a server that asks
real nodes and a real `cronium web`, and every question of the alerts and the dashboard put to it.

Grafana is not in Debian: of the dashboard's file, only what its panels need is looked at here.
"""

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from cronium_worker.settings import Settings
from tests.conftest import wait_until
from tests.system.local_host import LocalHost
from tests.system.test_web import TOKEN, served

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/alerts.yml"
CONFIG = ROOT / "deploy/prometheus/prometheus.yml"
BOARD = json.loads((ROOT / "deploy/grafana/cronium.json").read_text())
ALERTS = re.findall(r"- alert: (\w+)", RULES.read_text())
NAME = re.compile(r"\b(?:cronium|process)_[a-z_]+\b(?!\s*=)|\bup\b")


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules_and_example_are_what_prometheus_takes(tmp_path: Path) -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", str(RULES))
    assert "SUCCESS" in promtool("check", "config", str(CONFIG))


# Each alert: what it fires at, and what is near and does not make it. Values by the minute.
FLEET, NODES = 'job="cronium-fleet",instance="w"', 'job="cronium-nodes",instance="n"'
ENDED = "cronium_fleet_jobs_finished_total"
POOL = "cronium_pool_jobs_total"
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "CroniumFleetUnknown": ({f"up{{{FLEET}}}": "0x600"}, {f"up{{{FLEET}}}": "1x600"}),
    "CroniumNoLiveWorker": (
        {'cronium_fleet_host_state{host="a",state="live"}': "0x600"},
        {'cronium_fleet_host_state{host="a",state="live"}': "1x600"},
    ),
    "CroniumHostGone": (
        {'cronium_fleet_host_state{host="a",state="gone"}': "1x600"},
        {'cronium_fleet_host_state{host="a",state="gone"}': "0x600"},
    ),
    "CroniumHostUnfit": (
        {'cronium_fleet_host_state{host="a",state="unfit"}': "1x600"},
        {'cronium_fleet_host_state{host="a",state="unfit"}': "0x600"},
    ),
    "CroniumHostDrainingLong": (
        {'cronium_fleet_host_state{host="a",state="draining"}': "1x600"},
        {'cronium_fleet_host_state{host="a",state="draining"}': "0x400 1x200"},  # for three hours
    ),
    "CroniumDiskLow": (
        {'cronium_fleet_host_free_disk_bytes{host="a",path="/"}': "4e9x600"},
        {'cronium_fleet_host_free_disk_bytes{host="a",path="/"}': "6e9x600"},
    ),
    "CroniumQueueOld": (
        {'cronium_fleet_queue_oldest_seconds{queue="q"}': "301x600"},
        {'cronium_fleet_queue_oldest_seconds{queue="q"}': "200x600"},
    ),
    "CroniumQueueUnserved": (
        {'cronium_fleet_queue_messages{queue="q"}': "1x600", 'cronium_fleet_queue_hosts{queue="q"}': "0x600"},
        {'cronium_fleet_queue_messages{queue="q"}': "1x600", 'cronium_fleet_queue_hosts{queue="q"}': "1x600"},
    ),
    "CroniumNobodyRecovers": (
        {"cronium_fleet_jobs_unattended": "3x600"},
        {"cronium_fleet_jobs_unattended": "3 0 3 0 " * 150},
    ),
    "CroniumNoHousekeeping": (
        {'cronium_fleet_host_housekeeping_timestamp_seconds{host="a",kind="cleanup"}': "0x600"},
        {'cronium_fleet_host_housekeeping_timestamp_seconds{host="a",kind="cleanup"}': "0+60x600"},
    ),
    "CroniumJobsLost": (
        {f'{ENDED}{{error_type="lost",status="failed"}}': "0x110 1x10"},
        {f'{ENDED}{{error_type="lost",status="failed"}}': "1x600", f'{ENDED}{{error_type=""}}': "0+1x600"},
    ),
    "CroniumFleetErrors": (
        {f'{ENDED}{{error_type="daemon"}}': "0+1x600", f'{ENDED}{{error_type=""}}': "0+9x600"},
        {f'{ENDED}{{error_type="script"}}': "0+1x600", f'{ENDED}{{error_type=""}}': "0+9x600"},
    ),
    "CroniumScriptErrors": (
        {f'{ENDED}{{status="failed"}}': "0+6x600", f'{ENDED}{{status="completed"}}': "0+4x600"},
        {f'{ENDED}{{status="failed"}}': "0+4x600", f'{ENDED}{{status="completed"}}': "0+6x600"},
    ),
    "CroniumNodeUnknown": ({f"up{{{NODES}}}": "0x600"}, {f"up{{{NODES}}}": "1x600"}),
    "CroniumClaimsLost": (
        {'cronium_claims_lost_total{instance="n"}': "0x110 1x10"},
        {'cronium_claims_lost_total{instance="n"}': "1x600"},
    ),
    "CroniumLeasesNotRenewed": (
        {
            'cronium_lease_renewed_timestamp_seconds{instance="n"}': "0x600",
            'cronium_slots{instance="n"}': "8x600",
        },
        {  # an agent
            'cronium_lease_renewed_timestamp_seconds{instance="n"}': "0x600",
            'cronium_slots{instance="n"}': "0x600",
        },
    ),
    "CroniumRedisErrors": (
        {'cronium_redis_errors_total{instance="n",error="TimeoutError"}': "0+5x600"},
        {'cronium_redis_errors_total{instance="n",error="TimeoutError"}': "0+1x600"},
    ),
    "CroniumEngineErrors": (
        {'cronium_engine_errors_total{instance="n",outcome="failed"}': "0+2x600"},
        {'cronium_engine_errors_total{instance="n",outcome="refused"}': "0+2x600"},
    ),
    "CroniumPullsFail": (
        {'cronium_image_pull_failures_total{instance="n",reason="denied"}': "0+1x600"},
        {'cronium_image_pull_failures_total{instance="n",reason="cancelled"}': "0+1x600"},
    ),
    "CroniumPoolStarved": (
        {f'{POOL}{{instance="n",outcome="miss"}}': "0+20x600", f'{POOL}{{instance="n",outcome="hit"}}': "0+10x600"},
        {f'{POOL}{{instance="n",outcome="miss"}}': "0+10x600", f'{POOL}{{instance="n",outcome="hit"}}': "0+20x600"},
    ),
    "CroniumPoolFails": (
        {'cronium_pool_failures_total{instance="n"}': "0+1x600"},
        {'cronium_pool_failures_total{instance="n"}': "0x600"},
    ),
    "CroniumStartsSlow": (
        {
            'cronium_job_phase_seconds_bucket{instance="n",phase="setup",le="5"}': "0x600",
            'cronium_job_phase_seconds_bucket{instance="n",phase="setup",le="10"}': "0+9x600",
            'cronium_job_phase_seconds_bucket{instance="n",phase="setup",le="+Inf"}': "0+9x600",
        },
        {
            'cronium_job_phase_seconds_bucket{instance="n",phase="setup",le="5"}': "0+9x600",
            'cronium_job_phase_seconds_bucket{instance="n",phase="setup",le="10"}': "0+9x600",
            'cronium_job_phase_seconds_bucket{instance="n",phase="setup",le="+Inf"}': "0+9x600",
        },
    ),
}


def test_each_alert_has_its_cases() -> None:
    assert sorted(CASES) == sorted(ALERTS)


def test_each_alert_fires_when_it_must_and_only_then(tmp_path: Path) -> None:
    def case(alert: str, series: dict[str, str], firing: int) -> dict[str, Any]:
        count = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
        at = "595m" if "Long" in alert else "115m"
        expected = [{"labels": "{}", "value": firing}] if firing else []
        return {
            "name": f"{alert}, {'fires' if firing else 'silent'}",
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [{"expr": count, "eval_time": at, "exp_samples": expected}],
        }

    tests = [case(alert, series, at) for alert, both in CASES.items() for series, at in zip(both, (1, 0), strict=True)]
    shutil.copy(RULES, tmp_path / "alerts.yml")
    file = tmp_path / "tests.yml"  # JSON is YAML
    file.write_text(json.dumps({"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": tests}))

    promtool("test", "rules", str(file))


# ---- a fleet that is asked


class Prometheus:
    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str, **parameters: str) -> Any:
        answer = requests.get(f"{self._address}/{path}", params=parameters, timeout=10)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        return list(self.get("query", query=expression)["result"])

    def names(self) -> set[str]:
        """Of all families that it was told of, with or without samples, and what it makes of them."""
        families = {name: each[0]["type"] for name, each in self.get("metadata").items()}
        parts = {f"{name}_{part}" for name, kind in families.items() for part in PARTS.get(kind, ())}
        return set(families) | parts | {"up"}

    def health(self) -> list[str]:
        try:
            answer = requests.get(f"{self._address}/targets", timeout=10)
        except requests.ConnectionError:
            return []
        return [target["health"] for target in answer.json()["data"]["activeTargets"]] if answer.ok else []


# In the format that Prometheus asks for, families are named without these.
PARTS = {"histogram": ("bucket", "count", "sum"), "counter": ("total",), "info": ("info",)}


def two_free_ports() -> int:
    """The first of two."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@contextmanager
def asking(path: Path, web: str, port: int) -> Iterator[Prometheus]:
    """Prometheus with the example's configuration, but for addresses, the token, and how often it asks."""
    path.mkdir()
    shutil.copy(RULES, path)
    (path / "token").write_text(TOKEN)
    config = (
        CONFIG.read_text()
        .replace("127.0.0.1:8700", web.removeprefix("http://"))
        .replace("127.0.0.1:9464", f"127.0.0.1:{port}")
        .replace("127.0.0.1:9465", f"127.0.0.1:{port + 1}")
        .replace(
            "    # authorization:\n    #   credentials_file: /etc/prometheus/cronium-token",
            f"    authorization: {{credentials_file: {path}/token}}",
        )
        .replace("_interval: 15s", "_interval: 1s")
    )
    (path / "prometheus.yml").write_text(config)
    listen = two_free_ports()
    command = [
        "prometheus", f"--config.file={path}/prometheus.yml", f"--storage.tsdb.path={path}/data",
        f"--web.listen-address=127.0.0.1:{listen}", "--log.level=warn",
    ]  # fmt: skip
    with (path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield Prometheus(listen)
        finally:
            process.terminate()
            assert process.wait(30) == 0, (path / "log").read_text()


@pytest.fixture(scope="module")
def prometheus(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory, leftovers: Callable[[], list[str]]
) -> Iterator[Prometheus]:
    """It has asked a host's two nodes and `cronium web` before and after jobs, whole and failed."""
    path = tmp_path_factory.mktemp("prometheus")
    host, port = LocalHost(settings, path), two_free_ports()
    with served(host.env["CRONIUM_REDIS_URL"], CRONIUM_WEB__TOKEN=TOKEN, CRONIUM_LEASE_TTL="3") as web:
        try:
            host.start(CRONIUM_METRICS__PORT=str(port), CRONIUM_POOL__SIZE="1")
            with asking(path / "server", web, port) as prometheus:
                wait_until(lambda: prometheus.health() == ["up"] * 3, timeout_s=30, what="all targets answer")
                jobs = [host.submit("echo one"), host.submit("exit 3")]
                for job in jobs:
                    wait_until(lambda job=job: host.status(job) in ("completed", "failed"), timeout_s=60, what="ended")
                assert host.cronium("cleanup").returncode == 0
                seen = "sum(cronium_jobs_finished_total) == 2 and on () cronium_fleet_jobs_unsettled"
                wait_until(lambda: prometheus.query(seen), timeout_s=30, what="Prometheus has seen both")
                wait_until(
                    lambda: prometheus.query("rate(cronium_log_lines_total[20s]) > 0"), timeout_s=30, what="rate"
                )
                yield prometheus
        finally:
            host.close()
            host.remove_containers()


def asked(expression: str) -> str:
    """As Grafana asks it."""
    return expression.replace("$__rate_interval", "20s").replace("$host", ".*")


PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUESTIONS = [(panel["title"], asked(target["expr"])) for panel in PANELS for target in panel["targets"]]
# Of what has not happened here.
MAY_BE_EMPTY = {"Made again", "Pulls", "Redis's errors"}


def test_each_alert_asks_for_what_there_is(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    assert sorted(rule["name"] for rule in rules) == sorted(ALERTS)
    wait_until(
        lambda: all(rule["health"] == "ok" for group in prometheus.get("rules")["groups"] for rule in group["rules"]),
        what="all were evaluated",
    )
    names = prometheus.names()
    unknown = {(rule["name"], name) for rule in rules for name in NAME.findall(rule["query"]) if name not in names}
    assert unknown == set()


def test_a_fleet_that_is_well_pages_nobody(prometheus: Prometheus) -> None:
    pages = {alert["labels"]["alertname"] for alert in prometheus.get("alerts")["alerts"] if alert["state"] == "firing"}

    # Other tests' hosts are gone, and half of the two jobs have failed.
    assert pages <= {"CroniumHostGone", "CroniumScriptErrors", "CroniumDiskLow"}


def test_each_panel_asks_for_what_there_is_and_has_an_answer(prometheus: Prometheus) -> None:
    names = prometheus.names()

    assert {(title, name) for title, text in QUESTIONS for name in NAME.findall(text) if name not in names} == set()
    for title, text in QUESTIONS:
        if title not in MAY_BE_EMPTY:
            # A node that has not answered Prometheus in time has no figures until it is asked again.
            wait_until(lambda text=text: prometheus.query(text), what=f"an answer to {title}: {text}")


def test_the_figures_are_the_fleets(prometheus: Prometheus) -> None:
    def value(expression: str) -> float:
        (found,) = prometheus.query(expression)
        return float(found["value"][1])

    assert value('sum(cronium_jobs_finished_total{status="completed",type="bash",error_type=""})') == 1
    assert value('sum(cronium_jobs_finished_total{status="failed",type="bash",error_type="script"})') == 1
    assert value('sum(cronium_job_phase_seconds_count{phase="total"})') == 2
    assert value("sum(cronium_log_lines_total)") == 1
    assert value("sum(cronium_slots)") == 2
    assert value('count(cronium_node_info{node="jobs"}) + count(cronium_node_info{node="agent"})') == 2
    assert value("sum(increase(cronium_fleet_jobs_finished_total[1m]))") > 0
    assert value("min(cronium_fleet_host_free_disk_bytes)") > 0


def test_every_metric_is_in_the_documentation(prometheus: Prometheus) -> None:
    written = set(re.findall(r"`(cronium_\w+)`", (ROOT / "docs/metrics.md").read_text()))
    families = {name: each[0]["type"] for name, each in prometheus.get("metadata").items() if "cronium_" in name}
    suffix = {"counter": "_total", "info": "_info"}

    assert written == {name + suffix.get(kind, "") for name, kind in families.items()}
    assert all(each[0]["help"].endswith(".") for name, each in prometheus.get("metadata").items() if name in families)


def test_every_alert_is_in_the_documentation() -> None:
    assert set(re.findall(r"`(Cronium\w+)`", (ROOT / "docs/metrics.md").read_text())) == set(ALERTS)


def test_the_dashboard_has_what_its_panels_need() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert {panel["type"] for panel in PANELS} == {"stat", "timeseries", "state-timeline"}
    variables = {variable["name"] for variable in BOARD["templating"]["list"]}
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        used = {name for target in panel["targets"] for name in re.findall(r"\$(\w+)", target["expr"])}
        assert used <= variables | {"__rate_interval"}
