"""Asks a Prometheus every query of the dashboard and the state of every rule.

    python -m loadtest.dashboard --prometheus http://127.0.0.1:9090

Exit code 1 when a panel would stay empty or a rule cannot be evaluated; metrics named in --missing may be
absent.
"""

import argparse
import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.environment import ROOT

DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "draftline.json"
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
METRIC = re.compile(r"\b(?:draftline|process)_\w+|\bdraftline:[\w:]+|\bup\b|\bALERTS\b")
SELECTOR = re.compile(rf"({METRIC.pattern})\{{([^}}]*)\}}")
LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


@dataclass(frozen=True)
class PanelQuery:
    """One query of one panel."""

    title: str
    expression: str

    def concrete(self, rate_interval: str = "1m") -> str:
        """Return the query with Grafana's variables filled in: every model and instance."""
        variables = {"$__rate_interval": rate_interval, "$model": ".*", "$instance": ".*"}
        expression = self.expression
        for variable, value in variables.items():
            expression = expression.replace(variable, value)
        return expression


def panel_queries(dashboard: Mapping[str, Any]) -> list[PanelQuery]:
    """Return every query of every panel, those of rows and annotations too."""
    found = []
    for panel in _panels(dashboard["panels"]):
        found += [PanelQuery(panel["title"], target["expr"]) for target in panel.get("targets", ())]
    annotations = dashboard.get("annotations", {}).get("list", ())
    return found + [PanelQuery(f"annotation {a['name']}", a["expr"]) for a in annotations]


def _panels(panels: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for panel in panels:
        yield panel
        yield from _panels(panel.get("panels", ()))


def metric_names(expression: str) -> set[str]:
    """Return the metrics that an expression of ours names."""
    return set(METRIC.findall(expression))


def label_names(expression: str) -> dict[str, set[str]]:
    """Return the labels that an expression selects by, for each metric."""
    found: dict[str, set[str]] = {}
    for metric, matchers in SELECTOR.findall(expression):
        found.setdefault(metric, set()).update(LABEL.findall(matchers))
    return found


def get(prometheus: str, path: str, **parameters: str) -> Any:
    """Return the `data` of an answer of Prometheus's HTTP API."""
    url = f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.load(response)["data"]


def empty_panels(prometheus: str, queries: Sequence[PanelQuery], missing: Sequence[str] = ()) -> list[str]:
    """Return the titles of the queries that bring no series; alerts that do not fire bring none either."""
    asked = [query for query in queries if not metric_names(query.expression) & {"ALERTS", *missing}]
    return [
        f"{query.title}: {query.concrete()}"
        for query in asked
        if not get(prometheus, "query", query=query.concrete())["result"]
    ]


def broken_rules(prometheus: str) -> list[str]:
    """Return the rules that were not evaluated, with the reason."""
    rules = [rule for group in get(prometheus, "rules")["groups"] for rule in group["rules"]]
    if not rules:
        return ["no rule is loaded"]
    return [f"{rule['name']}: {rule.get('lastError', '')}" for rule in rules if rule["health"] != "ok"]


def main(argv: Sequence[str] | None = None) -> None:
    """Ask everything and say what is empty."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--missing", nargs="*", default=[], help="metrics that may be absent")
    arguments = parser.parse_args(argv)
    queries = panel_queries(json.loads(DASHBOARD.read_text()))
    problems = empty_panels(arguments.prometheus, queries, arguments.missing)
    problems += broken_rules(arguments.prometheus)
    for problem in problems:
        print(f"FAILED: {problem}")
    print(f"{len(queries)} queries, {len(problems)} problems")
    if problems:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
