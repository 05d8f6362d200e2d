"""Reads a server's /metrics into numbers: what a load test compares its own figures with."""

import re
import urllib.request
from collections import defaultdict

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def scrape(base_url: str, api_key: str = "") -> dict[str, float]:
    """Fetch and read /metrics."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    request = urllib.request.Request(f"{base_url}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        return read_samples(response.read().decode())


def read_samples(text: str) -> dict[str, float]:
    """Return each metric summed over its labels, and each labelled one as `name{label=value}`.

    The label model_name is left out of the names, and histograms' buckets are left out altogether.
    """
    found: defaultdict[str, float] = defaultdict(float)
    for line in text.splitlines():
        sample = _SAMPLE.match(line)
        if sample is None or sample[1].endswith("_bucket"):
            continue
        name, labels, value = sample[1], dict(_LABEL.findall(sample[2] or "")), float(sample[3])
        labels.pop("model_name", None)
        found[name] += value
        if labels:
            found[f"{name}{{{','.join(f'{k}={v}' for k, v in sorted(labels.items()))}}}"] += value
    return dict(found)
