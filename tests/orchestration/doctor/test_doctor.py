"""What `lqray doctor` finds on this machine, and what it says of that."""

import os
import subprocess
import sys
from pathlib import Path


def lqray(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lqray", *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)


def test_doctor_finds_nothing_broken_here(tmp_path):
    done = lqray("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "operators on cpu" in done.stdout
    assert "bytes on cpu        equal" in done.stdout
    assert "BROKEN" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_doctor_names_what_is_broken_and_the_remedy(tmp_path):
    environment = {"LQRAY_NATIVE": "0", "RAY_ADDRESS": "127.0.0.1:1"}
    done = lqray("doctor", "--uri", "sqlite:////nowhere/lqray.db", cwd=tmp_path, **environment)
    assert done.returncode == 1
    broken = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("BROKEN")]
    assert broken == ["Ray", "MLflow"]
    assert done.stdout.count("remedy:") == 3
    assert "slow    operators on cpu    reference" in done.stdout
