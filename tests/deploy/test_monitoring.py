"""Dashboard and rules name only what a real scrape has; with Prometheus installed, it evaluates them all."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from loadtest import dashboard
from loadtest.environment import ROOT
from tests.fakes import FakeEngine, say
from tests.server.harness import serving

# Named by dashboard and rules, not exported yet: to be emptied when speculation is merged.
PROMETHEUS_OWN = {"up", "ALERTS"}
TARGET_LABELS = {"instance", "job"}

DASHBOARD = json.loads(dashboard.DASHBOARD.read_text())
QUERIES = dashboard.panel_queries(DASHBOARD)
RULES = [rule for group in yaml.safe_load(dashboard.RULES.read_text())["groups"] for rule in group["rules"]]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}


@pytest.fixture(scope="module")
def server():
    with serving(FakeEngine(lambda _: say("hello"))) as running:
        for _ in range(3):
            running.client.post("/v1/completions", json={"prompt": "x"}).raise_for_status()
        yield running


@pytest.fixture(scope="module")
def scraped(server) -> dict[str, set[str]]:
    """Sample name -> label names, from a real scrape."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(server.client.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("expression", [q.expression for q in QUERIES] + [r["expr"] for r in RULES])
def test_every_metric_and_label_exists(scraped, expression):
    names = dashboard.metric_names(expression)
    assert names, "an expression without a metric of ours"
    assert names - PROMETHEUS_OWN - RECORDED <= set(scraped)
    for metric, labels in dashboard.label_names(expression).items():
        if metric in scraped:
            assert labels <= scraped[metric] | TARGET_LABELS


def test_every_panel_has_a_title_a_unit_and_a_place_of_its_own():
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert len(panels) >= 20
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    for panel in panels:
        assert panel["title"]
        assert panel["targets"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "prometheus"
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    alerts = [rule for rule in RULES if "alert" in rule]
    assert {"DraftlineStalled", "DraftlineQueueing", "DraftlineErrors"} <= {rule["alert"] for rule in alerts}
    assert {"DraftlineKvPressure", "DraftlineAcceptanceCollapse"} <= {rule["alert"] for rule in alerts}
    page = (ROOT / "deploy" / "README.md").read_text()
    for rule in alerts:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"]
        assert rule["alert"] in page


def test_what_compose_mounts_is_there():
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    assert set(services) == {"draftline", "prometheus", "grafana"}
    mounts = [v.partition(":")[0] for service in services.values() for v in service["volumes"]]
    for mount in mounts:
        if mount.startswith("./"):
            assert (ROOT / "deploy" / mount).is_dir()
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    assert config["rule_files"] == ["rules.yml"]
    assert config["scrape_configs"][0]["job_name"] == "draftline"
    provider = (ROOT / "deploy/grafana/provisioning/dashboards/draftline.yaml").read_text()
    assert "/var/lib/grafana/dashboards" in provider
    assert services["draftline"]["read_only"]


def test_an_empty_panel_is_reported(monkeypatch, capsys):
    answers = {"query": {"result": []}, "rules": {"groups": []}}
    monkeypatch.setattr(dashboard, "get", lambda _, path, **__: answers[path])
    with pytest.raises(SystemExit):
        dashboard.main([])
    output = capsys.readouterr().out
    assert "FAILED: Between tokens" in output
    assert "no rule is loaded" in output


# With Debian's package prometheus only: its programs are not on the Python package index.
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="Prometheus is not installed"
)


@needs_prometheus
@pytest.mark.parametrize("command", [("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")])
def test_promtool_accepts_the_rules(command):
    folder = ROOT / "deploy" / "prometheus"
    result = subprocess.run(["promtool", *command], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@contextlib.contextmanager
def prometheus_scraping(target: str, folder: Path):
    """Run a Prometheus with our configuration, scraping `target` every half second."""
    source = ROOT / "deploy" / "prometheus"
    config = (source / "prometheus.yml").read_text().replace("draftline:8000", target)
    config = re.sub(r"(scrape|evaluation)_interval: \d+s", r"\1_interval: 500ms", config)
    (folder / "prometheus.yml").write_text(config)
    shutil.copy(source / "rules.yml", folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = (f"--web.listen-address={address}", f"--storage.tsdb.path={folder / 'data'}")
    process = subprocess.Popen(
        ["prometheus", f"--config.file={folder / 'prometheus.yml'}", *flags], stderr=subprocess.DEVNULL
    )
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)


@needs_prometheus
def test_prometheus_evaluates_every_panel_and_rule(server, tmp_path):
    queries = QUERIES
    with prometheus_scraping(server.url.removeprefix("http://"), tmp_path) as prometheus:
        problems = ["never asked"]
        deadline = time.monotonic() + 60
        while problems and time.monotonic() < deadline:
            server.client.post("/v1/completions", json={"prompt": "x"}).raise_for_status()
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                problems = dashboard.empty_panels(prometheus, queries, [])
                problems += dashboard.broken_rules(prometheus)
            time.sleep(0.2)
        assert problems == []
