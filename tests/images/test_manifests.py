"""Are the runtimes and the examples what KServe takes, and what the servers need?"""

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import images
import pytest
import yaml
from tests.images import manifests, schemas
from tests.images.manifests import Document

from kserve.config import ServerConfig

HERE = Path(__file__).parent
KSERVE = json.loads((HERE / "kserve_runtimes.json").read_text())
RUNTIMES = manifests.runtimes()
SERVICES = manifests.services()
PACKAGES = {path.parent.name for path in manifests.ROOT.glob("packages/*server/src/*/__main__.py")}
GRPC = "-grpc"
# Names that KServe has too: ours replace them.
REPLACED = {"kserve-sklearnserver", "kserve-xgbserver", "kserve-lgbserver"}

needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed"
)


@pytest.fixture(scope="module", params=["crds", "api classes"])
def validators(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> schemas.Validators:
    """Give the schemas: of the CRDs where they are, or of the API classes where they can be had."""
    if request.param == "crds":
        paths = schemas.find_crds()
        if not paths:
            pytest.skip("no folder with KServe's CRDs; KSERVE_CRDS names one")
        return schemas.read_crds(paths)
    try:
        return schemas.read_api_classes(tmp_path_factory.mktemp("api"))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"KServe's packages cannot be had: {error.stderr.strip()[-200:]}")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", [*RUNTIMES, *SERVICES])
def test_a_manifest_fits_the_schema(name: str, validators: schemas.Validators) -> None:
    document = RUNTIMES.get(name) or SERVICES[name]

    assert schemas.problems(document, validators) == []


def _set(document: Document, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    place: Any = document
    for key in parents:
        place = place[int(key)] if key.isdigit() else place[key]
    place[last] = value


MISTAKES: dict[str, Callable[[Document], None]] = {
    "a misspelt field": lambda d: _set(d, "spec.protocolVersion", ["v1"]),
    "a misspelt field of a probe": lambda d: _set(
        d, "spec.containers.0.livenessProbe.failureTreshold", 3
    ),
    "a text for a number": lambda d: _set(d, "spec.containers.0.livenessProbe.periodSeconds", "10"),
    "a number for a text": lambda d: _set(d, "spec.supportedModelFormats.0.version", 1),
    "a list for a map": lambda d: _set(d, "spec.annotations", []),
    "a container twice": lambda d: d["spec"]["containers"].append(d["spec"]["containers"][0]),
    "a format that has no name": lambda d: d["spec"]["supportedModelFormats"][0].pop("name"),
    "no containers": lambda d: d["spec"].pop("containers"),
}
# The API classes do not say that it is required.
ONLY_CRDS = {"a format that has no name"}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_caught(mistake: str, validators: schemas.Validators) -> None:
    document = copy.deepcopy(RUNTIMES["kserve-sklearnserver"])
    MISTAKES[mistake](document)
    from_classes = "$defs" in str(next(iter(validators.values())).schema)

    found = schemas.problems(document, validators)

    assert bool(found) != (from_classes and mistake in ONLY_CRDS), found


@pytest.mark.timeout(120)
def test_a_mistake_in_an_example_is_caught(validators: schemas.Validators) -> None:
    document = copy.deepcopy(SERVICES["sklearn.yaml"])
    _set(document, "spec.predictor.terminationGracePeriod", 30)

    assert schemas.problems(document, validators) != []


@needs_kubectl
def test_kustomize_gives_what_was_reviewed() -> None:
    assert manifests.kustomize(manifests.RUNTIMES) == (HERE / "runtimes.yaml").read_text()


@needs_kubectl
def test_kustomize_names_the_image_of_the_transformer_and_carries_its_script() -> None:
    built = manifests.kustomize(manifests.EXAMPLES / "transformer")
    config, service = yaml.safe_load_all(built)

    script = manifests.EXAMPLES / "transformer" / "transformer.py"
    assert config["data"] == {"transformer.py": script.read_text()}
    transformer = service["spec"]["transformer"]
    assert transformer["containers"][0]["image"] == "model-servers/sklearnserver:0.1.0"
    assert transformer["volumes"][0]["configMap"] == {"name": config["metadata"]["name"]}


def _conflict(ours: Document, other: Document) -> list[str]:
    """Find formats for which KServe refuses two runtimes, by the rule of its webhook.

    Source: pkg/webhook/admission/servingruntime/servingruntime_webhook.go. `autoSelect` is taken as
    true, so that a cluster may turn it on.
    """
    if not set(ours["protocolVersions"]) & set(other["protocolVersions"]):
        return []
    return [
        f"{mine['name']} {mine['version']} {mine['priority']}"
        for mine, theirs in product(ours["supportedModelFormats"], other["supportedModelFormats"])
        if theirs["autoSelect"]
        and (mine["name"], mine["version"]) == (theirs["name"], theirs["version"])
        and mine["priority"] == theirs.get("priority")
    ]


def _auto_selected(spec: Document) -> Document:
    formats = [{**row, "autoSelect": True} for row in spec["supportedModelFormats"]]
    return {**spec, "supportedModelFormats": formats}


def test_no_priority_is_taken() -> None:
    specs = {row["name"]: row for row in KSERVE}
    specs |= {name: _auto_selected(runtime["spec"]) for name, runtime in RUNTIMES.items()}
    conflicts = {
        (name, other): found
        for name, other in product(RUNTIMES, specs)
        if name != other and (found := _conflict(specs[name], specs[other]))
    }

    assert conflicts == {}


def test_a_taken_priority_would_be_seen() -> None:
    spec = copy.deepcopy(RUNTIMES["kserve-onnxserver"]["spec"])
    spec["supportedModelFormats"][0]["priority"] = 2
    (openvino,) = (row for row in KSERVE if row["name"] == "kserve-openvino")

    assert _conflict(spec, openvino) == ["onnx 1 2"]


@pytest.mark.parametrize("name", RUNTIMES)
def test_one_format_has_one_priority_in_a_runtime(name: str) -> None:
    # KServe refuses others.
    formats = RUNTIMES[name]["spec"]["supportedModelFormats"]

    assert len({row["name"] for row in formats}) == len(
        {(r["name"], r["priority"]) for r in formats}
    )


@pytest.mark.parametrize("name", sorted(REPLACED))
def test_a_replacement_takes_all_that_kserves_own_does(name: str) -> None:
    (theirs,) = (row for row in KSERVE if row["name"] == name)
    ours = RUNTIMES[name]["spec"]

    assert set(theirs["protocolVersions"]) <= set(ours["protocolVersions"])
    assert all(row in ours["supportedModelFormats"] for row in theirs["supportedModelFormats"])


def test_only_replacements_have_names_of_kserves() -> None:
    assert set(RUNTIMES) & {row["name"] for row in KSERVE} == REPLACED


def test_a_server_has_a_runtime_a_grpc_variant_an_image_and_a_smoke_test() -> None:
    rows = images.read_rows()

    assert PACKAGES <= set(rows)
    assert {f"kserve-{name}{suffix}" for name in rows for suffix in ("", GRPC)} == set(RUNTIMES)
    assert set(images.SMOKE) == set(rows)
    assert [row.target for row in rows.values()] == list(rows)
    assert [row.args["SERVER"] for row in rows.values()] == list(rows)


def test_the_image_of_a_runtime_is_one_that_is_built() -> None:
    (kustomization,) = manifests.read(manifests.RUNTIMES / "kustomization.yaml")
    named = {row["name"]: row["newTag"] for row in kustomization["images"]}
    built = {name: row.tags[-1].partition(":")[2] for name, row in images.read_rows().items()}

    assert named == built
    for name, runtime in RUNTIMES.items():
        image = name.removeprefix("kserve-").removesuffix(GRPC)
        assert manifests.container(runtime)["image"] == image
        assert f"{name}.yaml" in kustomization["resources"]


def test_every_runtime_differs_from_the_first_only_in_what_it_serves() -> None:
    first = RUNTIMES["kserve-sklearnserver"]
    for name, runtime in RUNTIMES.items():
        other = copy.deepcopy(runtime)
        other["metadata"]["name"] = first["metadata"]["name"]
        other["spec"]["supportedModelFormats"] = first["spec"]["supportedModelFormats"]
        other["spec"]["containers"][0]["image"] = "sklearnserver"
        reference = RUNTIMES[f"kserve-sklearnserver{GRPC if name.endswith(GRPC) else ''}"]
        other["metadata"]["name"] = reference["metadata"]["name"]
        other["spec"]["supportedModelFormats"] = reference["spec"]["supportedModelFormats"]
        assert other == reference


def test_a_grpc_variant_differs_in_protocol_port_and_probes_and_wins() -> None:
    plain, variant = (
        copy.deepcopy(RUNTIMES[f"kserve-sklearnserver{suffix}"]["spec"]) for suffix in ("", GRPC)
    )
    wins = [(row["name"], row["priority"] + 1) for row in plain["supportedModelFormats"]]
    assert [(row["name"], row["priority"]) for row in variant["supportedModelFormats"]] == wins
    assert variant["protocolVersions"] == ["grpc-v2"]
    only = variant["containers"][0]
    assert only["ports"] == [{"name": "h2c", "containerPort": 8081, "protocol": "TCP"}]
    alive, ready = {"port": 8081, "service": "LIVENESS"}, {"port": 8081}
    probes = {"startupProbe": alive, "livenessProbe": alive, "readinessProbe": ready}
    assert {name: only[name]["grpc"] for name in probes} == probes

    for spec in (plain, variant):
        for key in ("supportedModelFormats", "protocolVersions"):
            spec.pop(key)
        for probe in probes:
            for action in ("httpGet", "grpc"):
                spec["containers"][0][probe].pop(action, None)
        spec["containers"][0].pop("ports", None)
    variant["containers"][0]["args"].remove("--grpc_port=8081")
    assert variant == plain


def _grace_period_s(spec: Document) -> float:
    arguments = [a for row in spec.get("containers", []) for a in row.get("args", [])]
    arguments += spec.get("model", {}).get("args", [])
    given = [a.partition("=")[2] for a in arguments if a.startswith("--grace_period_s=")]
    return float(given[-1]) if given else ServerConfig().grace_period_s


@pytest.mark.parametrize("name", SERVICES)
def test_a_pod_is_given_the_time_that_its_server_takes_to_end(name: str) -> None:
    document = SERVICES[name]
    mode = document["metadata"]["annotations"]["serving.kserve.io/deploymentMode"]
    for part in ("predictor", "transformer"):
        spec = document["spec"].get(part)
        if spec is None:
            continue
        # Knative refuses the field.
        is_set = "terminationGracePeriodSeconds" in spec
        assert is_set == (mode == "RawDeployment")
        if is_set:
            assert spec["terminationGracePeriodSeconds"] == _grace_period_s(spec) + 5


@pytest.mark.parametrize("name", SERVICES)
def test_an_example_finds_one_of_our_runtimes(name: str) -> None:
    model = SERVICES[name]["spec"]["predictor"]["model"]
    protocol = model.get("protocolVersion", "v1")
    found = {
        runtime_name: row.get("priority", 0)
        for runtime_name, runtime in RUNTIMES.items()
        for row in runtime["spec"]["supportedModelFormats"]
        if row["name"] == model["modelFormat"]["name"]
        and protocol in runtime["spec"]["protocolVersions"]
        and (row["autoSelect"] or model.get("runtime") == runtime_name)
    }

    assert max(found, key=lambda each: found[each]).endswith(GRPC) == (protocol == "grpc-v2")


def test_every_server_has_an_example() -> None:
    used = {
        service["spec"]["predictor"]["model"]["modelFormat"]["name"]
        for service in SERVICES.values()
    }
    served = {r["name"] for d in RUNTIMES.values() for r in d["spec"]["supportedModelFormats"]}

    assert used == served


@needs_kubectl
def test_runtimes_on_trial_are_used_by_nobody_who_does_not_name_them() -> None:
    built = list(yaml.safe_load_all(manifests.kustomize(manifests.ROOT / "runtimes-trial")))

    assert {document["metadata"]["name"] for document in built} == {f"trial-{n}" for n in RUNTIMES}
    formats = [row for document in built for row in document["spec"]["supportedModelFormats"]]
    assert [row for row in formats if row["autoSelect"]] == []
