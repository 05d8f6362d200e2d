"""The forms for a GPU: compose.gpu.yaml and kubernetes-gpu, on top of those for a CPU."""

import json
import shutil
import subprocess

import pytest
import yaml

from loadtest.environment import ROOT
from server.settings import ServeSettings

DEPLOY = ROOT / "deploy"
FOLDER = DEPLOY / "kubernetes-gpu"
PATCH = yaml.safe_load((FOLDER / "deployment.yaml").read_text())
[CONTAINER] = PATCH["spec"]["template"]["spec"]["containers"]


def variables(environment: dict[str, str]) -> set[str]:
    return {"DRAFTLINE_" + name.upper() for name in ServeSettings.model_fields} & set(environment)


def test_compose_reserves_one_card_for_the_cuda_image():
    override = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text())["services"]
    base = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert set(override) <= set(base)
    server = override["draftline"]
    assert server["build"]["args"] == {"VARIANT": "cuda"}
    [device] = server["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert variables(server["environment"]) == set(server["environment"])
    assert base["draftline"]["volumes"] == ["models:/var/cache/draftline"], "compiled kernels lie there too"


def test_every_file_of_the_overlay_is_used():
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    used = {patch["path"] for patch in kustomization["patches"]} | {"kustomization.yaml"}
    assert {path.name for path in FOLDER.iterdir()} == used
    assert kustomization["resources"] == ["../kubernetes"]
    [image] = kustomization["images"]
    [base] = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())["images"]
    assert image["name"] == base["newName"], "the name that the base gives it"


def test_a_pod_asks_for_one_card_and_can_keep_what_it_compiles():
    assert CONTAINER["resources"]["limits"]["nvidia.com/gpu"] == 1
    mounts = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert mounts == {"/var/cache/draftline/triton"}
    assert f"TRITON_CACHE_DIR={mounts.pop()} " in (ROOT / "Dockerfile").read_text()
    assert variables({entry["name"]: entry["value"] for entry in CONTAINER["env"]})


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_the_overlay_renders_without_an_autoscaler():
    command = ["kubectl", "kustomize", str(FOLDER)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    rendered = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(finished.stdout)}
    assert set(rendered) == {"Deployment", "Service", "PodDisruptionBudget"}
    spec = rendered["Deployment"]["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    [container] = spec["template"]["spec"]["containers"]
    assert container["image"].startswith("registry.example/draftline-cuda:")
    assert {mount["name"] for mount in container["volumeMounts"]} == {"tmp", "triton"}
    assert container["startupProbe"]["httpGet"]["path"] == "/ready"
    assert container["securityContext"]["readOnlyRootFilesystem"], json.dumps(container)
