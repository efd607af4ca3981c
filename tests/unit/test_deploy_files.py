"""What `deploy/` holds for servers, as far as it can be read without docker and a cluster."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from rltrack.config import TrainingConfig

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
COMPOSE = (DEPLOY / "compose.yaml").read_text()


def test_nothing_starts_without_passwords():
    required = set(re.findall(r"\$\{(\w+):\?", COMPOSE))
    listed = dict(line.split("=", 1) for line in (DEPLOY / "env.example").read_text().splitlines() if "=" in line)
    assert listed.keys() == required
    assert set(listed.values()) == {""}, "no password has a default"
    optional = set(re.findall(r"\$\{(\w+)(?::-|\})", COMPOSE))
    assert not [name for name in optional if "PASSWORD" in name or "SECRET" in name or "AUTH" in name]


def test_the_services_fit_together():
    services = yaml.safe_load(COMPOSE)["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other}"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service.get("restart") in ("unless-stopped", "no")
    databases = (DEPLOY / "postgres-init.sql").read_text()
    used = set(re.findall(r"rltrack_\w+", COMPOSE + (DEPLOY / "start-mlflow.sh").read_text()))
    assert used <= set(re.findall(r"rltrack_\w+", databases))


def test_the_image_is_not_root_and_has_the_locked_versions():
    lines = (DEPLOY / "Dockerfile").read_text()
    assert lines.index("USER rltrack") < lines.index("CMD")
    assert "--no-deps --require-hashes --requirement requirements.lock" in lines
    torch = re.findall(r"^ARG TORCH_VERSION=(.+)$", lines, re.MULTILINE)
    assert torch == re.findall(r"^torch==(\S+)", (DEPLOY.parent / "requirements.lock").read_text(), re.MULTILINE)
    for source in re.findall(r"^COPY (.+) \S+$", lines, re.MULTILINE):
        for name in source.split():
            assert (DEPLOY.parent / name).exists(), name
    locked = (DEPLOY / "requirements.lock").read_text()
    for package in ("mlflow", "prefect", "stable-baselines3", "sb3-contrib", "optuna", "psycopg", "s3fs", "flask-wtf"):
        assert f"\n{package}==" in locked, package


def test_the_job_template_has_a_variable_for_each_placeholder():
    text = (DEPLOY / "kubernetes" / "job-template.json").read_text()
    template = json.loads(text)
    placeholders = set(re.findall(r"\{\{ (\w+) \}\}", text))
    assert placeholders == template["variables"]["properties"].keys()
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert template["variables"]["properties"]["grace_seconds"]["minimum"] > 20, "a checkpoint takes up to 20 s"


def test_the_shell_script_is_sound():
    assert subprocess.run(["sh", "-n", str(DEPLOY / "start-mlflow.sh")]).returncode == 0
    refused = subprocess.run(["sh", str(DEPLOY / "start-mlflow.sh")], env={}, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "MLFLOW_USER" in refused.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_the_units_are_sound():
    units = sorted((DEPLOY / "systemd").glob("*.service"))
    done = subprocess.run(["systemd-analyze", "verify", *map(str, units)], capture_output=True, text=True)
    others = [line for line in done.stderr.splitlines() if "is not executable" not in line and "rltrack" in line]
    assert others == []


def test_the_deployments_have_valid_parameters():
    found = yaml.safe_load((DEPLOY / "prefect.yaml").read_text())["deployments"]
    for deployment in found:
        module = deployment["entrypoint"].rpartition(".")[0]
        assert (DEPLOY.parent / f"{module.replace('.', '/')}.py").exists()
        if "config" in deployment.get("parameters", {}):
            TrainingConfig.from_mapping(deployment["parameters"]["config"])
        assert deployment["tags"] == ["rltrack"], "automations find them by it"


def test_the_inference_service_is_of_mlflows_format():
    found = yaml.safe_load((DEPLOY / "kubernetes" / "inference-service.yaml").read_text())
    assert (found["apiVersion"], found["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    model = found["spec"]["predictor"]["model"]
    assert (model["modelFormat"]["name"], model["protocolVersion"]) == ("mlflow", "v2")
    assert {"name": "MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "value": "false"} in model["env"]
