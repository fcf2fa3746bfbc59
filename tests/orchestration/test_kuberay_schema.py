"""deploy/kuberay-rayjob.yaml against KubeRay's own schema, its custom resource definition: a megabyte that is in no
package which tests could install. Where somebody has it, LQRAY_KUBERAY_CRD names the file."""

import copy
import os
from pathlib import Path

import jsonschema
import pytest
import yaml

CRD = os.environ.get("LQRAY_KUBERAY_CRD", "")
JOB = Path(__file__).resolve().parents[2] / "deploy/kuberay-rayjob.yaml"


def strict(schema: object) -> object:
    """The schema, in which unknown keys are errors, as for `kubectl --validate=strict`."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return schema
    if isinstance(schema.get("properties"), dict):
        known = {key: strict(value) for key, value in schema["properties"].items()}
        rest = {key: strict(value) for key, value in schema.items() if key != "properties"}
        return {"additionalProperties": False, **rest, "properties": known}
    return {key: strict(value) for key, value in schema.items()}


@pytest.mark.skipif(
    not CRD, reason="set LQRAY_KUBERAY_CRD to KubeRay's ray-operator/config/crd/bases/ray.io_rayjobs.yaml"
)
def test_the_rayjob_satisfies_kuberays_own_schema():
    definition = yaml.load(Path(CRD).read_text(), Loader=yaml.CSafeLoader)
    schemas = {one["name"]: one["schema"]["openAPIV3Schema"] for one in definition["spec"]["versions"]}
    (job,) = (one for one in yaml.safe_load_all(JOB.read_text()) if one["kind"] == "RayJob")
    schema = strict(schemas[job["apiVersion"].removeprefix("ray.io/")])
    schema["properties"]["metadata"] = {"type": "object"}
    errors = [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(job)]
    assert errors == []
    wrong = copy.deepcopy(job)
    wrong["spec"]["entripoint"] = "x"
    wrong["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] = 3
    assert len(list(jsonschema.Draft202012Validator(schema).iter_errors(wrong))) == 2
