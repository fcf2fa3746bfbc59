"""The figure scripts draw what they say."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_levels(tmp_path, suffix):
    output = tmp_path / f"levels.{suffix}"
    script = ROOT / "experiments" / "figures" / "levels.py"
    done = subprocess.run(
        [sys.executable, script, "--bits", "2", "--output", output], capture_output=True, text=True, check=True
    )
    assert "alq " in done.stdout
    start = output.read_bytes()[:300]
    assert start.startswith(b"\x89PNG") if suffix == "png" else b"<svg" in start or b"<?xml" in start
    assert output.stat().st_size > 10_000
