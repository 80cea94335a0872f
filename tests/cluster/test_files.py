"""The cluster files: as far as one machine can check them (docs/ray.md says what was not tried)."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.commands import experiment, tune
from tests.support.kuberay import KINDS, misfits

CLUSTER = Path(__file__).parents[2] / "cluster"
AUTOSCALER = sorted((CLUSTER / "autoscaler").glob("*.yaml"))
KUBERAY = sorted((CLUSTER / "kuberay").glob("*.yaml"))
SLURM = CLUSTER / "slurm" / "tune.sbatch"


def load(path: Path) -> dict:
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict)
    return content


def test_there_are_files():
    assert len(AUTOSCALER) == 2
    assert len(KUBERAY) == 2


@pytest.mark.parametrize("path", AUTOSCALER, ids=lambda path: path.stem)
def test_autoscaler_files_fit_rays_schema(path):
    prepared = prepare_config(load(path))
    validate_config(prepared)
    heads = " ".join(prepared["head_start_ray_commands"])
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in heads
    assert "--dashboard-host=127.0.0.1" in heads
    broken = {**prepared, "max_worker": 3}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(broken)


def pods(spec: dict) -> list[dict]:
    cluster = spec.get("rayClusterSpec", spec)
    return [group["template"]["spec"] for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]]


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_kuberay_files_hang_together(path):
    """Mounts name volumes, every pod sees the shared storage, limits cover requests."""
    content = load(path)
    assert content["apiVersion"] == "ray.io/v1"
    for pod in pods(content["spec"]):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert set(mounts) <= volumes
            assert mounts["shared"] == "/nfs"
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert set(requests) == set(limits)
            assert limits.get("nvidia.com/gpu") == requests.get("nvidia.com/gpu"), "Kubernetes wants them equal"


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_kuberay_files_fit_the_api(path):
    content = load(path)
    assert list(misfits(content, KINDS[content["kind"]])) == []


@pytest.mark.parametrize(
    "text, broken, message",
    [
        ('num-cpus: "0"', "num-cpus: 0", ".spec.headGroupSpec.rayStartParams.num-cpus is int, not str"),
        ("minReplicas: 0", "", ".spec.workerGroupSpecs[0].minReplicas is missing"),
        ("maxReplicas: 8", "maxReplica: 8", ".spec.workerGroupSpecs[0].maxReplica is unknown"),
        ("sizeLimit: 8Gi", "sizeLimit: 8GiB", ".volumes[1].emptyDir.sizeLimit is no quantity"),
        ("idleTimeoutSeconds: 300", "idleTimeoutSeconds: 5 min", ".idleTimeoutSeconds is str, not int"),
    ],
)
def test_what_kubernetes_would_reject_is_found(text, broken, message):
    original = (CLUSTER / "kuberay" / "raycluster.yaml").read_text()
    assert text in original
    found = list(misfits(yaml.safe_load(original.replace(text, broken)), KINDS["RayCluster"]))
    assert any(fault.endswith(message) for fault in found), found


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_rays_autoscaler_reads_the_kuberay_files(path):
    """What KubeRay's autoscaler container makes of them: Ray's own code, which also checks the result's schema."""
    content = load(path)
    spec = content["spec"].get("rayClusterSpec", content["spec"])
    metadata = {**content["metadata"], "namespace": "default"}
    config = _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": spec})
    kinds = config["available_node_types"]
    assert kinds["headgroup"]["resources"]["CPU"] == 0, "no rank on the head"
    assert {name: kinds["gpu"]["resources"][name] for name in ("CPU", "GPU")} == {"CPU": 8, "GPU": 1}
    assert (kinds["gpu"]["min_workers"], kinds["gpu"]["max_workers"]) == (0, 8)


def test_slurm_script():
    assert subprocess.run(["bash", "-n", SLURM]).returncode == 0
    if shutil.which("shellcheck"):
        result = subprocess.run(["shellcheck", SLURM], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout


def test_slurm_script_with_stand_ins_for_slurm(tmp_path):
    """The script's own logic, with `srun` and `scontrol` that run their command here and `ray` that notes its call."""
    stand_ins = {
        "scontrol": "echo node1; echo node2",
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "hostname": "echo 10.0.0.1",
        "ray": f"""echo "ray $*" >> {tmp_path}/calls
            [ "$1" != list ] || grep "^ray start" {tmp_path}/calls | sed 's/.*/"node_id"/' """,
        "dmd": f'echo "dmd $*" >> {tmp_path}/calls; exit 3',
    }
    venv = tmp_path / "venv" / "bin"
    venv.mkdir(parents=True)
    for name, body in stand_ins.items():
        (venv / name).write_text(f"#!/bin/bash\n{body}\n")
        (venv / name).chmod(0o755)
    (venv / "activate").write_text(f"PATH={venv}:$PATH\n")
    environment = {
        "PATH": "/usr/bin:/bin",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "DMD_VENV": str(venv.parent),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_CPUS_PER_TASK": "16",
    }
    result = subprocess.run(
        ["bash", SLURM, "tune", "--trials", "4 4"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 3, "the exit code is the command's"
    calls = (tmp_path / "calls").read_text().splitlines()
    starts = sorted(call for call in calls if call.startswith("ray start"))
    assert len(starts) == 2
    assert "--head --node-ip-address 10.0.0.1 --port 20007 --dashboard-host 127.0.0.1" in starts[1]
    assert starts[0].endswith("--num-cpus 16 --num-gpus 4 --address 10.0.0.1:20007")
    assert [call for call in calls if call.startswith("dmd")] == ["dmd tune --address 10.0.0.1:20007 --trials 4 4"]


@pytest.mark.parametrize("command", [tune, experiment])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        command(["--help"])
    assert stop.value.code == 0
    assert "--ranks-per-trial" in capsys.readouterr().out
