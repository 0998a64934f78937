"""The deploy files: checked by the tools of their kind where there are any, and against the settings."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import yaml

from scheduler.settings import Settings, load_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
ROOT = DEPLOY.parent


def tool(name: str) -> str:
    """A program from this environment, or from PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else which(name)
    if found is None:
        pytest.skip(f"no {name} here")
    return found


def check(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def unit() -> dict[str, str]:
    lines = (DEPLOY / "prompt-scheduler.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_dockerfile_passes_hadolint() -> None:
    check(tool("hadolint"), DEPLOY / "Dockerfile")


def test_image_is_made_of_all_that_the_wheel_is_made_of() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = (DEPLOY / "Dockerfile").read_text().split()
    let_in = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for package in document["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert f"./{package}" in copied
        assert f"!{package}" in let_in


def test_image_is_slim_made_in_stages_and_not_run_by_root() -> None:
    instructions = [
        line.split(maxsplit=1)
        for line in (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
        if line and not line.startswith("#")
    ]
    bases = [rest for word, rest in instructions if word == "FROM"]
    last_stage = instructions[max(i for i, (word, _) in enumerate(instructions) if word == "FROM") :]
    assert len(bases) == 2
    assert all(base.startswith("python:3.12-slim") for base in bases)
    users = [rest for word, rest in last_stage if word == "USER"]
    assert users
    assert users[-1].split(":")[0].isdigit(), "by number, so that Kubernetes sees it is not root"
    assert users[-1] != "0"
    assert any(word == "HEALTHCHECK" and '"--check"' in rest for word, rest in last_stage)
    assert last_stage[-1] == ["CMD", '["arq", "scheduler.WorkerSettings"]']


def test_image_copies_only_what_the_build_context_lets_through() -> None:
    let_through = {
        line.removeprefix("!")
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        name.removeprefix("./")
        for line in (DEPLOY / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY") and "--from" not in line
        for name in line.split()[1:-1]
    }
    assert copied == let_through
    assert {name for name in copied if not (ROOT / name).exists()} == set()


def test_image_installs_extras_that_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    line = next(line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if "pip install" in line)
    extras = line.partition("[")[2].partition("]")[0].split(",")
    assert extras
    assert set(extras) <= set(project["optional-dependencies"])
    assert "metrics" in extras, "the compose file switches them on"
    assert f"'.[{','.join(extras)}]'" in (DEPLOY / "README.md").read_text(), "the same under systemd"


def test_compose_file_follows_the_schema() -> None:
    check(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_compose_keeps_jobs_on_disk_and_never_evicts(compose: dict[str, Any]) -> None:
    redis = compose["services"]["redis"]
    command = redis["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert redis["image"].startswith("redis:7")
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    volume, target = redis["volumes"][0].split(":")
    assert volume in compose["volumes"]
    assert target == "/data"
    assert all(port.startswith("127.0.0.1:") for port in redis["ports"])


def test_compose_restarts_and_checks_every_service(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"]
    assert compose["services"]["worker"]["depends_on"] == {"redis": {"condition": "service_healthy"}}


def test_compose_worker_starts_with_its_environment(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]
    environ = {name: str(value) for name, value in worker["environment"].items()}
    environ["SCHEDULER_CONFIG"] = str(DEPLOY / "config.example.toml")
    assert load_settings(environ=environ).redis_url.get_secret_value() == "redis://redis:6379"
    mounted = dict(volume.rsplit(":", 2)[:2][::-1] for volume in worker["volumes"])
    assert mounted[worker["environment"]["SCHEDULER_CONFIG"]].endswith("./config.example.toml}")


def test_monitoring_is_a_profile_of_its_own_and_reached_from_this_machine_alone(
    compose: dict[str, Any],
) -> None:
    profiles = {name: service.get("profiles", []) for name, service in compose["services"].items()}
    assert profiles == {"redis": [], "worker": [], "prometheus": ["monitoring"], "grafana": ["monitoring"]}
    for name in ("prometheus", "grafana"):
        assert all(port.startswith("127.0.0.1:") for port in compose["services"][name]["ports"])
    assert "ports" not in compose["services"]["worker"], "metrics are for the other containers"


def test_prometheus_scrapes_every_worker_at_the_port_that_it_is_given(compose: dict[str, Any]) -> None:
    environ = compose["services"]["worker"]["environment"]
    assert environ["SCHEDULER_METRICS_HOST"] == "0.0.0.0", "in its container"
    mounted = mounts(compose["services"]["prometheus"])
    config = yaml.safe_load(mounted["/etc/prometheus/prometheus.yaml"].read_text())
    (found,) = config["scrape_configs"][0]["dns_sd_configs"]
    assert found["names"] == ["worker"]
    assert found["names"][0] in compose["services"]
    assert str(found["port"]) == environ["SCHEDULER_METRICS_PORT"]
    assert [Path("/etc/prometheus") / name for name in config["rule_files"]] == [
        Path("/etc/prometheus/rules.yaml")
    ]
    assert mounted["/etc/prometheus/rules.yaml"] == DEPLOY / "prometheus" / "rules.yaml"


def test_grafana_is_given_the_dashboard_and_its_prometheus(compose: dict[str, Any]) -> None:
    grafana = compose["services"]["grafana"]
    mounted = mounts(grafana)
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounted[home] == DEPLOY / "grafana" / "dashboard.json"
    provisioning = mounted["/etc/grafana/provisioning"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "files.yaml").read_text())["providers"]
    assert provider["options"]["path"] == str(Path(home).parent)
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    for name in ("GF_AUTH_DISABLE_LOGIN_FORM", "GF_AUTH_ANONYMOUS_ENABLED"):
        assert grafana["environment"][name] == "true", "no password that everybody knows"
    assert grafana["environment"]["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def mounts(service: dict[str, Any]) -> dict[str, Path]:
    """The files and folders of ours that a service sees, by where; each has to be there."""
    bound = [volume.split(":") for volume in service["volumes"] if volume.startswith("./")]
    found = {target: DEPLOY / source for source, target, mode in bound if mode == "ro"}
    assert all(path.exists() for path in found.values())
    return found


def test_stop_time_outs_are_longer_than_the_drain(compose: dict[str, Any], unit: dict[str, str]) -> None:
    example = load_settings(DEPLOY / "config.example.toml", environ={})
    longest = max(example.drain_s, Settings().drain_s)
    assert seconds(compose["services"]["worker"]["stop_grace_period"]) > longest
    assert seconds(unit["TimeoutStopSec"]) > longest


def test_unit_is_accepted_by_systemd(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    text = (DEPLOY / "prompt-scheduler.service").read_text()
    copy = tmp_path / "prompt-scheduler.service"
    copy.write_text(text.replace("/opt/prompt-scheduler/bin/arq", "/bin/true"))
    check(analyze, "verify", "--man=no", copy)


def test_unit_stops_the_worker_gently_and_starts_it_again(unit: dict[str, str]) -> None:
    assert unit["Type"] == "exec"
    assert unit["KillSignal"] == "SIGTERM"
    assert unit["KillMode"] == "mixed", "an embedded server outlives the worker's last prompts"
    assert unit["Restart"] == "always"
    assert unit["ExecStart"].endswith("/arq scheduler.WorkerSettings")


@pytest.mark.parametrize("option", ["NoNewPrivileges", "PrivateTmp", "ProtectHome", "PrivateDevices"])
def test_unit_is_hardened(unit: dict[str, str], option: str) -> None:
    assert unit[option] == "yes"
    assert unit["ProtectSystem"] == "strict"
    assert unit["User"] != "root"


def test_example_configuration_loads_as_it_is() -> None:
    settings = load_settings(DEPLOY / "config.example.toml", environ={})
    assert list(settings.routes) == ["echo"]


def test_example_configuration_loads_with_its_comments_taken_away(tmp_path: Path) -> None:
    lines = (DEPLOY / "config.example.toml").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("# [routes.chat]"))
    full = lines[:start] + [line.removeprefix("#").removeprefix(" ") for line in lines[start:]]
    path = tmp_path / "config.toml"
    path.write_text("\n".join(full))
    routes = load_settings(path, environ={}).routes
    assert set(routes) == {"echo", "chat"}
    assert routes["chat"].endpoints[0].max_in_flight == 32
    assert len(routes["chat"].endpoints) == 2


def test_readme_speaks_of_every_file() -> None:
    text = (DEPLOY / "README.md").read_text()
    names = {path.name for path in DEPLOY.iterdir()} - {"README.md"}
    assert {name for name in names if name not in text} == set()
