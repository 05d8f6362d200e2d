"""The manifests: valid for the schemas of Kubernetes, and in step with the server they describe."""

import importlib.util
import warnings

import pytest
import yaml

from loadtest.environment import ROOT
from server.settings import ServeSettings
from tests.fakes import FakeEngine
from tests.server.harness import serving

FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
MANIFESTS = {
    manifest["kind"]: manifest
    for name in KUSTOMIZATION["resources"]
    for manifest in yaml.safe_load_all((FOLDER / name).read_text())
}
POD = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]


def test_everything_that_is_there_is_applied():
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(KUSTOMIZATION["resources"])
    assert set(MANIFESTS) == {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}


# Its schemas are 108 MB unpacked: part of the extra `loadtest`, not of `test`.
@pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None, reason="kubernetes-validate is not installed"
)
@pytest.mark.parametrize("kind", list(MANIFESTS))
def test_the_schema_of_kubernetes_accepts_it(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import kubernetes_validate

        kubernetes_validate.validate(MANIFESTS[kind], "1.32", strict=True)


def test_selectors_find_the_pods():
    labels = MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    assert MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    target = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", MANIFESTS["Deployment"]["metadata"]["name"])


def test_probes_and_metric_are_answered_by_the_server():
    [metric] = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["metrics"]
    with serving(FakeEngine()) as server:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert server.client.get(CONTAINER[probe]["httpGet"]["path"]).status_code == 200
        assert metric["pods"]["metric"]["name"] in server.client.get("/metrics").text
        assert server.client.get("/ready").status_code == 200
    with serving(FakeEngine(), is_loading=True) as server:
        assert server.client.get(CONTAINER["readinessProbe"]["httpGet"]["path"]).status_code == 503
        assert server.client.get(CONTAINER["livenessProbe"]["httpGet"]["path"]).status_code == 200


def test_the_pod_has_time_to_drain_and_no_rights():
    flag = CONTAINER["args"].index("--shutdown-timeout")
    shutdown_timeout = float(CONTAINER["args"][flag + 1])
    pre_stop = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["terminationGracePeriodSeconds"] > shutdown_timeout + pre_stop
    assert ServeSettings.model_fields["port"].default == CONTAINER["ports"][0]["containerPort"]
    assert POD["enableServiceLinks"] is False
    assert POD["securityContext"]["runAsNonRoot"]
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    assert CONTAINER["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert f"--uid {POD['securityContext']['runAsUser']} " in (ROOT / "Dockerfile").read_text()
