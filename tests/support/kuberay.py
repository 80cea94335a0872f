"""What KubeRay's `ray.io/v1` takes, as far as the files in cluster/kuberay use it: names, types, what must be there.

Restated from ray-project/kuberay: ray-operator/apis/ray/v1/raycluster_types.go (026f143), rayjob_types.go (0057210) and
the CRD generated from them (helm-chart/kuberay-operator/crds/ray.io_rayclusters.yaml, 017710c). Kubernetes rejects
a wrong type or a missing field and, with kubectl's default of strict validation, an unknown one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

QUANTITY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?")


@dataclass(frozen=True)
class Fields:
    """An object with these fields, `required` among them."""

    required: tuple[str, ...] = ()
    fields: dict[str, Any] | None = None


@dataclass(frozen=True)
class Map:
    """Any keys, values of one kind."""

    of: Any


def fields(*required: str, **kinds: Any) -> Fields:
    return Fields(required, kinds)


RESOURCES = fields(requests=Map("quantity"), limits=Map("quantity"))
CONTAINER = fields(
    "name",
    name=str,
    image=str,
    ports=[fields("containerPort", containerPort=int, name=str)],
    resources=RESOURCES,
    volumeMounts=[fields("name", "mountPath", name=str, mountPath=str)],
)
VOLUME = fields(
    "name",
    name=str,
    persistentVolumeClaim=fields("claimName", claimName=str),
    emptyDir=fields(medium=str, sizeLimit="quantity"),
)
POD = fields(spec=fields("containers", containers=[CONTAINER], volumes=[VOLUME]))
CLUSTER = fields(
    "headGroupSpec",
    rayVersion=str,
    enableInTreeAutoscaling=bool,
    autoscalerOptions=fields(idleTimeoutSeconds=int),
    headGroupSpec=fields("rayStartParams", "template", rayStartParams=Map(str), template=POD),
    workerGroupSpecs=[
        fields(
            "groupName",
            "minReplicas",
            "maxReplicas",
            "rayStartParams",
            "template",
            groupName=str,
            replicas=int,
            minReplicas=int,
            maxReplicas=int,
            rayStartParams=Map(str),
            template=POD,
        )
    ],
)
JOB = fields(
    entrypoint=str, shutdownAfterJobFinishes=bool, ttlSecondsAfterFinished=int, backoffLimit=int, rayClusterSpec=CLUSTER
)
KINDS = {
    kind: fields("apiVersion", "kind", "spec", apiVersion=str, kind=str, metadata=fields(name=str), spec=spec)
    for kind, spec in (("RayCluster", CLUSTER), ("RayJob", JOB))
}


def misfits(value: Any, kind: Any, path: str = "") -> Iterator[str]:
    """Where a value is not what the API takes."""
    if isinstance(kind, Fields):
        yield from _misfits_of_object(value, kind, path)
    elif isinstance(kind, Map):
        for name, part in value.items():
            yield from misfits(part, kind.of, f"{path}.{name}")
    elif isinstance(kind, list):
        for number, part in enumerate(value):
            yield from misfits(part, kind[0], f"{path}[{number}]")
    elif kind == "quantity":
        if isinstance(value, bool) or not QUANTITY.fullmatch(str(value)):
            yield f"{path} is no quantity"
    elif type(value) is not kind:
        yield f"{path} is {type(value).__name__}, not {kind.__name__}"


def _misfits_of_object(value: Any, kind: Fields, path: str) -> Iterator[str]:
    """Fields that are missing or unknown, and what is wrong inside the others."""
    if not isinstance(value, dict):
        yield f"{path} is no object"
        return
    yield from (f"{path}.{name} is missing" for name in kind.required if name not in value)
    assert kind.fields is not None
    for name, part in value.items():
        if name in kind.fields:
            yield from misfits(part, kind.fields[name], f"{path}.{name}")
        else:
            yield f"{path}.{name} is unknown"
