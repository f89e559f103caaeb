"""Containerfile, compose.yaml and deploy/kubernetes agree with the settings, with each other, and with files they name.

No engine runs them here. `scripts/check_container.py` executes the Containerfile's steps, `scripts/check_manifests`
checks the rest against schemas; both take minutes or 100 MB, and are no part of the gate.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.broker import BrokerFactory
from fixtures.cluster import ReplicationTestHarness
from fixtures.node import NodeFactory, clean_environment

from merklekv.address import DEFAULT_PORT

ROOT = Path(__file__).parent.parent.parent
CONTAINERFILE = (ROOT / "Containerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
NODES = ("node-1", "node-2", "node-3")
OBJECTS = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/merklekv.yaml").read_text()))
PLACE = "/etc/merklekv/merklekv.toml"


def instruction(name: str) -> str:
    """What stands behind an instruction's name, the last time that it comes."""
    joined = CONTAINERFILE.replace("\\\n", " ")
    found: list[str] = re.findall(rf"^{name} (.*)$", joined, re.MULTILINE)
    return found[-1].strip()


def effective(arguments: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a node that is started with `run` and these arguments."""
    assert arguments[0] == "run"
    command = [sys.executable, "-m", "merklekv", "config", "--json", *arguments[1:]]
    done = subprocess.run(
        command, env=clean_environment() | dict(environment), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return {key: row["value"] for key, row in json.loads(done.stdout).items()}


def object_of(kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in OBJECTS if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return dict(found)


@pytest.fixture(scope="module")
def image() -> dict[str, Any]:
    """The settings of a node that runs the image's own command."""
    return effective(json.loads(instruction("CMD")), {})


def test_the_image_serves_on_the_ports_that_it_exposes(image: dict[str, Any]) -> None:
    assert [image["port"], image["http_port"]] == [int(port) for port in instruction("EXPOSE").split()]
    assert image["host"] == image["http_host"] == "0.0.0.0"
    assert image["allow_remote"] is True
    assert str(image["storage_path"]) == instruction("VOLUME") == instruction("WORKDIR")


def test_the_image_asks_its_own_node_for_its_health(image: dict[str, Any]) -> None:
    program, *words = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    assert (program, image["port"]) == ("merklekv", DEFAULT_PORT)  # which a verb asks that is given no node
    command = [sys.executable, "-m", "merklekv", *words, "--help"]
    subprocess.run(command, env=clean_environment(), stdout=subprocess.DEVNULL, timeout=60, check=True)


def test_the_image_is_made_of_files_that_are_there() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.*)$", CONTAINERFILE, re.MULTILINE):
        copied |= {*shlex.split(line)[:-1]}
    assert copied == kept
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_nobody_is_root_in_a_container() -> None:
    user = instruction("USER")
    (made,) = re.findall(r"useradd --uid (\d+) --gid (\d+)", CONTAINERFILE)
    assert user == ":".join(made)
    assert "0" not in made
    pod = object_of("StatefulSet", "merklekv")["spec"]["template"]["spec"]
    security = pod["securityContext"]
    assert [str(security[name]) for name in ("runAsUser", "runAsGroup", "fsGroup")] == [made[0], made[1], made[1]]
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("name", NODES)
def test_a_node_of_compose_is_a_node_of_one_cluster(name: str, image: dict[str, Any]) -> None:
    service = COMPOSE["services"][name]
    settings = effective(json.loads(instruction("CMD")), service["environment"])
    assert settings["replication.enabled"] is True
    assert settings["replication.mqtt_broker"] in COMPOSE["services"]
    assert settings["replication.client_id"] == name
    assert settings["replication.advertise_address"] == f"{name}:{image['port']}"
    assert service["volumes"] == [f"{name}:{image['storage_path']}"]
    assert {port.rpartition(":")[2] for port in service["ports"]} == {str(image["port"]), str(image["http_port"])}


def test_compose_publishes_each_port_once_and_on_the_loopback_alone() -> None:
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []
    assert len({port.split(":")[1] for port in published}) == len(published)


def test_compose_mounts_what_there_is() -> None:
    mounts = [mount for service in COMPOSE["services"].values() for mount in service.get("volumes", ())]
    sources = {mount.split(":")[0] for mount in mounts}
    files = {source for source in sources if source.startswith("./")}
    assert sources - files == COMPOSE["volumes"].keys()
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_broker_of_compose_lets_nodes_replicate(
    broker_factory: BrokerFactory, node_factory: NodeFactory, tmp_path: Path
) -> None:
    text = (ROOT / "deploy/compose/mosquitto.conf").read_text()
    assert "\nlistener 1883\n" in text  # in its place the factory puts a free port of the loopback
    lines = text.replace("\nlistener 1883\n", "\n").replace("/mosquitto/data/", f"{tmp_path}/").splitlines()
    harness = ReplicationTestHarness(node_factory, tmp_path, broker_factory(*lines), "merkle_kv")
    first, second = harness.create_nodes(2)
    first.set("key", "value")
    second.wait_for("key", "value")
    for node in harness.nodes:
        node.disconnect()


def test_prometheus_asks_every_node_of_compose(image: dict[str, Any]) -> None:
    configuration = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text())
    (job,) = configuration["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"{name}:{image['http_port']}" for name in NODES]}]
    (source,) = yaml.safe_load((ROOT / "deploy/compose/grafana/datasources.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"


def test_a_pod_is_a_node_with_a_name_that_its_peers_find(tmp_path: Path, image: dict[str, Any]) -> None:
    workload = object_of("StatefulSet", "merklekv")["spec"]
    (container,) = workload["template"]["spec"]["containers"]
    file = tmp_path / "merklekv.toml"
    file.write_text(object_of("ConfigMap", "merklekv")["data"][file.name])
    arguments = [str(file) if word == PLACE else word for word in container["args"]]
    given: dict[str, str] = {}
    for variable in container["env"]:  # as Kubernetes does it: a value may name variables before it
        value = variable.get("value") or {"metadata.name": "merklekv-0"}[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        given[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda found: given[found[1]], value)
    settings = effective(arguments, given)
    assert settings["replication.client_id"] == "merklekv-0"
    assert settings["replication.advertise_address"] == f"merklekv-0.{workload['serviceName']}:{image['port']}"
    named = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert named == {"clients": settings["port"], "http": settings["http_port"]}
    for key in ("host", "http_host", "allow_remote", "storage_path"):
        assert settings[key] == image[key], key
    (data, _) = container["volumeMounts"]
    assert data == {"name": workload["volumeClaimTemplates"][0]["metadata"]["name"], "mountPath": image["storage_path"]}


def test_probes_and_services_lead_to_the_pods() -> None:
    workload = object_of("StatefulSet", "merklekv")["spec"]
    labels = workload["template"]["metadata"]["labels"]
    (container,) = workload["template"]["spec"]["containers"]
    named = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/livez", "liveness": "/livez", "readiness": "/readyz",
    }  # fmt: skip
    assert workload["selector"]["matchLabels"] == labels
    for name in ("merklekv", "merklekv-nodes"):
        service = object_of("Service", name)["spec"]
        assert service["selector"] == labels
        assert {port["targetPort"]: port["port"] for port in service["ports"]}.items() <= named.items()
    assert object_of("Service", workload["serviceName"])["spec"]["publishNotReadyAddresses"] is True
    assert object_of("PodDisruptionBudget", "merklekv")["spec"]["selector"]["matchLabels"] == labels
