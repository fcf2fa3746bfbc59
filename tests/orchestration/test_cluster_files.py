"""Files that start clusters. What they start is not here; their shape, the schema where there is one, and the scripts
that they run are."""

import os
import shutil
import stat
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from tests.testing.heads import without
from tests.testing.sweeps import nothing_is_left, recorded

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster.aws.yaml"])
def test_launcher_files_satisfy_rays_schema(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / name).read_text())
    validate_config(prepare_config(config))
    start = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for text in config["setup_commands"]:
        assert (ROOT / text.split()[-1].removeprefix("~/lqray-tree/")).is_file()


def test_ray_is_pinned_to_the_version_here():
    import ray

    assert f"ray=={ray.__version__}" in (ROOT / "requirements.lock").read_text().splitlines()
    job = documents("deploy/kuberay-rayjob.yaml")[1]
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == ray.__version__
    assert f"rayproject/ray:{ray.__version__}-py3" in (ROOT / "deploy/Dockerfile").read_text()


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster.aws.yaml"])
def test_ray_up_sends_the_files_that_are_named_and_no_secret_of_the_tree(name, tmp_path):
    """rsync_exclude is asked of each file on its own, too: a pattern for secrets would keep the token here."""
    config = yaml.safe_load((ROOT / name).read_text())
    filters = [part for one in config["rsync_exclude"] for part in ("--exclude", one)]
    filters += [part for one in config["rsync_filter"] for part in ("--filter", f"dir-merge,- {one}")]
    files = [Path(one) for one in config["file_mounts"].values() if one != "."]
    files.append(Path(config["auth"].get("ssh_private_key", "~/.ssh/id_ed25519")))
    for file in files:
        assert not any(fnmatch(part, one) for part in file.parts for one in config["rsync_exclude"]), file
    if not shutil.which("rsync"):
        pytest.skip("the patterns' names were compared; rsync, which reads them, is not installed")
    home, there, tree = (tmp_path / one for one in ("home", "there", "tree"))
    for file in files:
        source = home / file.relative_to("~")
        source.parent.mkdir(exist_ok=True, parents=True)
        source.write_text("secret")
        target = there / file.relative_to("~")
        target.parent.mkdir(exist_ok=True, parents=True)
        subprocess.run(["rsync", "-az", *filters, str(source), str(target)], check=True)
        assert target.read_text() == "secret"
    secrets = [".env", "own.env", "a/.env.local", "a/auth_token", "my.pem", "a/my.key", ".ssh/config", "a/.netrc"]
    secrets += [".pgpass", ".aws/credentials", "id_ed25519", "a/id_rsa", "id_ecdsa", ".git/config", "lqray.db"]
    for secret in (*secrets, "lqray/kept.py"):
        (tree / secret).parent.mkdir(exist_ok=True, parents=True)
        (tree / secret).write_text("secret")
    shutil.copy(ROOT / ".gitignore", tree)
    subprocess.run(["rsync", "-az", *filters, f"{tree}/", f"{there}/tree/"], check=True)
    sent = {str(file.relative_to(there / "tree")) for file in (there / "tree").rglob("*") if file.is_file()}
    assert sent == {".gitignore", "lqray/kept.py"}


def test_workers_of_ones_own_machines_are_started_by_the_autoscaler_that_knows_them():
    """Ray's newer one, which `ray up` chooses, leaves them as they are (ray-project/ray#57153)."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert config["provider"]["type"] == "local"
    assert "RAY_enable_autoscaler_v2=0 ray start --head" in config["head_start_ray_commands"][-1]


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((ROOT / name).read_text()))


def test_the_rayjob_has_what_kuberay_asks_for():
    """KubeRay's own schema cannot be had here: these are the keys of its documentation that matter."""
    claim, job = documents("deploy/kuberay-rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["entrypoint"].startswith("python -m lqray run ")
    assert set(spec) == {
        *("entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        "rayClusterSpec",
    }
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        claims = [one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"] if "persistentVolumeClaim" in one]
        assert claims == [claim["metadata"]["name"]]
        (container,) = pod["containers"]
        assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        names = {"MLFLOW_TRACKING_URI", "LQRAY_STORAGE", "LQRAY_DATA", "LQRAY_CLUSTER_LIMIT"}
        assert {one["name"] for one in container["env"]} == names
        assert container["envFrom"] == [{"secretRef": {"name": "lqray"}}]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_the_service_is_one_for_systemd(tmp_path):
    text = (ROOT / "deploy/mlflow.service").read_text()
    (tmp_path / "mlflow.service").write_text(text.replace("/opt/lqray-venv/bin/lqray", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / "mlflow.service"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_compose_file_has_no_password_and_the_mlflow_of_the_lock():
    text = (ROOT / "deploy/compose.yaml").read_text()
    (document,) = documents("deploy/compose.yaml")
    server = document["services"]["mlflow"]
    for package in ("mlflow", "Flask-WTF", "psycopg"):
        (line,) = [
            one for one in (ROOT / "requirements.lock").read_text().splitlines() if one.startswith(f"{package}==")
        ]
        assert line in server["build"]["dockerfile_inline"].replace("psycopg[binary]", "psycopg")
    assert "-c /requirements.lock" in server["build"]["dockerfile_inline"]
    assert (ROOT / "deploy" / server["build"]["context"]).resolve() == ROOT
    assert server["depends_on"].keys() <= document["services"].keys()
    for line in text.splitlines():
        if "PASSWORD:" in line or "SECRET_KEY:" in line:
            assert "${" in line
    assert "PASSWORD" not in server["environment"]["MLFLOW_BACKEND_STORE_URI"]
    assert "USER mlflow" in server["build"]["dockerfile_inline"]
    assert all(
        port.startswith("127.0.0.1:") for service in document["services"].values() for port in service.get("ports", ())
    )
    assert "--app-name basic-auth" in server["command"]
    assert "--allowed-hosts ${MLFLOW_NAME:?}" in server["command"]


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(stat.S_IRWXU)


def test_a_node_is_set_up_once_for_the_gpus_it_has(tmp_path):
    """With stubs for Python and nvidia-smi that say what they are asked."""
    home, programs, log = tmp_path / "home", tmp_path / "bin", tmp_path / "calls.txt"
    for folder in (home, programs):
        folder.mkdir()
    program(programs, "nvidia-smi", "printf '9.0\\n8.0\\n9.0\\n'")
    (programs / "python").write_text(
        f'#!/bin/sh\necho "$TORCH_CUDA_ARCH_LIST|$@" >> {log}\n'
        '[ "$2" = venv ] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo VENV=$3 > "$3/bin/activate"; exit 0\n'
    )
    (programs / "python").chmod(stat.S_IRWXU)
    environment = {"HOME": str(home), "PYTHON": str(programs / "python"), "PATH": f"{programs}:{os.environ['PATH']}"}
    tree = tmp_path / "tree"
    for name in ("requirements.lock", "pyproject.toml", "setup.py", "deploy/setup_node.sh", "deploy/environment.sh"):
        (tree / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(ROOT / name, tree / name)
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    shutil.copytree(ROOT / "lqray/kernels", tree / "lqray/kernels")

    def builds(**more: str) -> list[str]:
        """The calls that compile kernels, of a setting up."""
        log.write_text("")
        subprocess.run(["bash", tree / "deploy/setup_node.sh"], env=environment | more, check=True)
        assert f"-r {tree}/requirements.lock" in log.read_text()
        return [call for call in log.read_text().splitlines() if "--editable" in call]

    (built,) = builds()
    assert built.split("|")[0] == "8.0;9.0"
    assert str(tree) in built
    assert len(builds()) == 1  # nothing was built
    (tree / "lqray/_native.so").write_text("")
    assert builds() == []
    assert "venv" not in log.read_text().replace("lqray-venv", "")
    for name in ("csrc/grids_cpu.cpp", "lqray/kernels/build.py", "requirements.lock", "setup.py"):
        with (tree / name).open("a") as file:
            file.write("\n# edited\n")
        assert len(builds()) == 1, name
        assert builds() == []
    assert builds(LQRAY_STORAGE="/of/the/cluster") == []
    assert len(builds(LQRAY_NATIVE="0")) == 1
    program(programs, "nvidia-smi", "printf '12.0\\n'")
    assert [call.split("|")[0] for call in builds()] == ["12.0"]

    (home / ".lqray.env").write_text("LQRAY_STORAGE='/shared/a b'\n")
    told = subprocess.run(
        ["bash", "-c", ". ~/.bashrc; env"], env=environment, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert {"RAY_AUTH_MODE=token", "LQRAY_STORAGE=/shared/a b"} <= set(told)
    assert (home / ".bashrc").read_text().count("environment.sh") == 1


PASSWORD = """pa$HOME`id`$(id)"x'y\\z #!"""


def test_a_password_reaches_the_machines_as_it_stands_in_the_file(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/activate").write_text("")
    file = tmp_path / ".lqray.env"
    file.write_text(
        f"# of this cluster\n\nMLFLOW_TRACKING_PASSWORD={PASSWORD}\nexport LQRAY_DATA='/local/a b'\n"
        'LQRAY_STORAGE="/shared/$x"\r\n  EMPTY=\nUNEVEN="\nhidden word\n1X=2\ntouch ' + str(tmp_path / "ran")
    )
    file.chmod(0o644)
    done = subprocess.run(
        ["bash", "-euc", f". {ROOT}/deploy/environment.sh; env -0"],
        env={"HOME": str(tmp_path), "LQRAY_VENV": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    told = dict(line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)
    assert told["MLFLOW_TRACKING_PASSWORD"] == PASSWORD
    assert (told["LQRAY_DATA"], told["LQRAY_STORAGE"]) == ("/local/a b", "/shared/$x")
    assert (told["EMPTY"], told["UNEVEN"]) == ("", '"')
    assert not (tmp_path / "ran").exists()
    assert "hidden" not in done.stderr
    assert "line 8 is not NAME=VALUE" in done.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_an_environment_that_somebody_else_wrote_is_not_read(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/activate").write_text("")
    (tmp_path / ".lqray.env").write_text("LQRAY_STORAGE=/theirs\n")
    os.chown(tmp_path / ".lqray.env", 12345, 12345)
    done = subprocess.run(
        ["bash", "-euc", f". {ROOT}/deploy/environment.sh; env"],
        env={"HOME": str(tmp_path), "LQRAY_VENV": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "LQRAY_STORAGE" not in done.stdout
    assert "another user's" in done.stderr


@pytest.mark.parametrize("taken", ["free", "a link", "another user's"])
def test_a_slurm_job_keeps_its_ray_in_a_folder_that_nobody_else_has_made(tmp_path, taken):
    """With stubs for all that it calls; mktemp gives a name that somebody has been faster to take on this machine."""
    if taken == "another user's" and os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    programs, folder = tmp_path / "bin", tmp_path / "lqray-x"
    programs.mkdir()
    if taken == "a link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    elif taken != "free":
        folder.mkdir()
        os.chown(folder, 12345, 12345)
    program(programs, "mktemp", f'echo "$*" > {tmp_path}/asked; echo {folder}')
    waiting = f"while [ ! -e {tmp_path}/ended ]; do sleep 0.05; done"
    program(programs, "python", f"[ $1 = -c ] && echo token; [ $1 = -m ] && {waiting}; exit 0")
    program(
        programs, "srun", f'while [ "${{1#--}}" != "$1" ]; do shift; done; SLURM_PROCID=0 "$@"; touch {tmp_path}/ended'
    )
    program(programs, "ray", f'stat -c %a {folder} > {tmp_path}/started; echo "$@" >> {tmp_path}/started')
    program(programs, "rm", "exit 0")
    done = subprocess.run(
        ["bash", ROOT / "deploy/slurm.sh", "sweep.yaml"],
        env=without("RAY_", "SLURM_") | {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "XXXXXX" in (tmp_path / "asked").read_text()
    started = tmp_path / "started"
    if taken == "free":
        mode, arguments = started.read_text().splitlines()
        assert mode == "700"
        assert f"--temp-dir={folder}/ray" in arguments
    else:
        assert not started.exists()
        assert str(folder) in done.stderr


SRUN = """#!/bin/bash
# Runs a command as often as there are tasks, all on this machine, and passes SIGTERM on.
while [[ $1 == --* ]]; do [[ $1 == --ntasks=* ]] && tasks=${1#*=}; shift; done
for ((task = 0; task < tasks; task++)); do SLURM_PROCID=$task "$@" & tasks_started+=($!); done
trap 'kill -TERM "${tasks_started[@]}"' TERM
for ((task = 0; task < tasks; task++)); do wait -n || { status=$?; kill -TERM "${tasks_started[@]}"; }; done
wait
exit ${status:-0}
"""
SWEEP = """
name: allocation
base:
  data: {name: digits}
  model: {name: mlp, layers: [16]}
  optimizer: {name: sgd, lr: 0.1}
  schedule: {iterations: 20, batch_size: 16}
  workers: 2
  quantizer: {method: qsgd_inf, bucket_size: 128}
"""


@pytest.mark.ray
@pytest.mark.cluster
@pytest.mark.slow
def test_a_slurm_allocation_runs_a_sweep_over_its_nodes_and_leaves_nothing(tmp_path):
    """Two nodes of one CPU each, so that the trial's two processes are on both."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "srun").write_text(SRUN)
    (programs / "srun").chmod(stat.S_IRWXU)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    environment = without("RAY_", "SLURM_", "MLFLOW_TRACKING") | {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "LQRAY_TEST_MARK": str(tmp_path),
        "LQRAY_STORAGE": str(tmp_path / "lqray-storage"),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_GPUS_ON_NODE": "0",
    }
    before = set(Path("/tmp").glob("lqray-????????"))
    done = subprocess.run(
        ["bash", ROOT / "deploy/slurm.sh", "sweep.yaml", "--launcher", "warm"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Ray on 2 nodes" in said
    (run,) = recorded(f"sqlite:///{tmp_path}/lqray.db", "allocation").values()
    assert run.info.status == "FINISHED"
    nothing_is_left(tmp_path)
    assert set(Path("/tmp").glob("lqray-????????")) <= before

    usage = subprocess.run(["bash", ROOT / "deploy/slurm.sh"], capture_output=True, text=True)
    assert usage.returncode == 2
    assert "usage: sbatch" in usage.stderr
