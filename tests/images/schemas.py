"""The schemas of KServe's resources, as validators that refuse unknown fields.

They come from KServe's CRDs, where a folder holds them, else from the API classes of the released
packages `kserve` and `kubernetes`, which are read and not imported.
"""

import ast
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parents[2]
# By name and hash, as pip reads them.
PACKAGES = """\
kserve==0.21.0 --hash=sha256:df9bc5888704d9085015e08f1a8fced5ff0698f3becc6212d4e7b8234c71623b
kubernetes==32.0.1 --hash=sha256:35282ab8493b938b08ab5526c7ce66588232df00ef5e1dbe88a419107dc10998
"""
KINDS = {
    ("serving.kserve.io/v1alpha1", "ClusterServingRuntime"): "V1alpha1ClusterServingRuntime",
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
}

Kind = tuple[str, str]
Schema = dict[str, Any]
Validators = Mapping[Kind, Draft202012Validator]


def find_crds() -> list[Path]:
    """Find KServe's CRDs: in the folder KSERVE_CRDS, or a folder `crds` beside the checkout."""
    if folder := os.environ.get("KSERVE_CRDS"):
        return sorted(Path(folder).glob("serving.kserve.io_*.yaml"))
    return sorted(ROOT.parent.glob("*/*/crds/serving.kserve.io_*.yaml"))


def read_crds(paths: Sequence[Path]) -> Validators:
    """Make validators of CRDs."""
    found: dict[Kind, Draft202012Validator] = {}
    for path in paths:
        with path.open() as file:
            for crd in yaml.load_all(file, Loader=yaml.CSafeLoader):
                spec = crd["spec"]
                for version in spec["versions"]:
                    kind = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                    schema = _strict(version["schema"]["openAPIV3Schema"])
                    schema["properties"]["metadata"] = {"type": "object"}
                    found[kind] = Draft202012Validator(schema)
    return found


def _strict(schema: Any) -> Schema:
    """Turn a structural schema of Kubernetes into one of JSON Schema that knows all its fields."""
    result: Schema = dict(schema)
    if result.pop("x-kubernetes-int-or-string", False):
        result.pop("anyOf", None)
        result["type"] = ["integer", "string"]
    keeps_unknown = result.pop("x-kubernetes-preserve-unknown-fields", False)
    if result.pop("nullable", False) and isinstance(result.get("type"), str):
        result["type"] = [result["type"], "null"]
    if "properties" in result:
        result["properties"] = {key: _strict(value) for key, value in result["properties"].items()}
        if not keeps_unknown:
            result.setdefault("additionalProperties", False)
    for key in ("additionalProperties", "items"):
        if isinstance(result.get(key), dict):
            result[key] = _strict(result[key])
    return result


def read_api_classes(folder: Path) -> Validators:
    """Make validators of the API classes, whose packages are downloaded into a folder.

    Raises:
        subprocess.CalledProcessError: They cannot be downloaded, or have other hashes.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(PACKAGES)
    # An environment made by uv has no pip; the one that uv itself is in does.
    tool = ROOT / ".uv" / "tool" / "bin" / "python"
    python = str(tool) if tool.exists() else sys.executable
    options = ["--quiet", "--no-deps", "--require-hashes"]
    subprocess.run(
        [python, "-m", "pip", "download", *options, "-d", str(folder), "-r", str(requirements)],
        check=True,
        capture_output=True,
        text=True,
    )
    definitions: Schema = {}
    for wheel in sorted(folder.glob("*.whl"), reverse=True):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if re.fullmatch(r"(kserve|kubernetes/client)/models/[a-z]\w*\.py", name):
                    definitions |= _class_schemas(archive.read(name).decode())
    definitions["V1ObjectMeta"] = {"type": "object"}
    return {
        kind: Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": definitions})
        for kind, name in KINDS.items()
    }


def _class_schemas(source: str) -> Iterator[tuple[str, Schema]]:
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        tables = {
            target.id: ast.literal_eval(statement.value)
            for statement in node.body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name) and target.id in ("openapi_types", "attribute_map")
        }
        if len(tables) == 2:
            yield node.name, _class_schema(source, **tables)


def _class_schema(
    source: str, openapi_types: Mapping[str, str], attribute_map: Mapping[str, str]
) -> Schema:
    required = [
        field
        for name, field in attribute_map.items()
        if f"Invalid value for `{name}`, must not be `None`" in source
    ]
    properties = {attribute_map[name]: _type(text) for name, text in openapi_types.items()}
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


_PLAIN: Mapping[str, Schema] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "datetime": {"type": "string"},
    "object": {},
    "ResourceQuantity": {"type": ["integer", "string"]},
    "IntOrString": {"type": ["integer", "string"]},
}


def _type(text: str) -> Schema:
    if match := re.fullmatch(r"list\[(.*)\]", text, re.IGNORECASE):
        return {"type": "array", "items": _type(match[1])}
    if match := re.fullmatch(r"dict\(str, (.*)\)", text):
        return {"type": "object", "additionalProperties": _type(match[1])}
    return dict(_PLAIN.get(text, {"$ref": f"#/$defs/{text}"}))


def problems(document: Mapping[str, Any], validators: Validators) -> list[str]:
    """Give a line for each thing that the API server would refuse in a document."""
    kind = (document["apiVersion"], document["kind"])
    if kind not in validators:
        return [f"no schema of {kind}"]
    errors = validators[kind].iter_errors(document)
    lines = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]
    return sorted([*lines, *_repeated_names(document, "")])


# Lists of these are maps by name to Kubernetes: a name may come once.
_BY_NAME = ("containers", "env", "ports", "volumes")


def _repeated_names(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            where = f"{path}.{key}".lstrip(".")
            if key in _BY_NAME and isinstance(inner, list):
                names = [item.get("name") for item in inner if isinstance(item, dict)]
                yield from (f"{where}: {n} is repeated" for n in {*names} if names.count(n) > 1)
            yield from _repeated_names(inner, where)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _repeated_names(inner, f"{path}.{number}")
