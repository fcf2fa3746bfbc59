"""lqray in a notebook: docs/guide/python.md's example as it stands, and a sweep that is interrupted."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty

import pytest

from tests.testing.small import TEXT, empty_store

nbformat = pytest.importorskip("nbformat", reason="no nbformat here: `make test` installs it")
nbclient = pytest.importorskip("nbclient", reason="no nbclient here: `make test` installs it")
pytest.importorskip("ipykernel", reason="no ipykernel here: `make test` installs it")

ROOT = Path(__file__).parent.parent
_SECONDS = 300
pytestmark = pytest.mark.processes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty one, with a store; kernels find the lqray that is tested."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "LQRAY_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    empty_store(tmp_path / "lqray.db")
    return tmp_path


def shown(cell) -> str:
    """By a cell that was run."""
    return "".join(one.get("text") or one["data"]["text/plain"] for one in cell.outputs)


def test_the_documents_example_runs_as_it_stands(folder):
    subprocess.run([sys.executable, "-m", "lqray", "init"], check=True, capture_output=True)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/guide/python.md").read_text(), re.MULTILINE | re.DOTALL)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in blocks])
    nbclient.NotebookClient(notebook, timeout=_SECONDS, resources={"metadata": {"path": str(folder)}}).execute()
    sweep, table, notes, differences = map(shown, notebook.cells)
    assert "quickstart: 4 to run" in sweep
    assert "(4/4) " in sweep
    assert "'alq-seed2'" in sweep
    assert all(output.output_type != "display_data" for output in notebook.cells[0].outputs), "plain lines alone"
    assert re.search(r"full_precision +2 +0\.\d+", table)
    assert re.search(r"alq +2 +0\.\d+", table)
    assert "3.13" in table
    assert "standard deviation" in notes
    assert "quantizer.method" in differences


def test_an_interrupt_ends_the_sweep_and_the_notebook_goes_on(folder):
    from jupyter_client.manager import start_new_kernel

    (folder / "small.yaml").write_text(TEXT.replace("NAME", "small").replace("FOLDER", str(folder)))
    manager, client = start_new_kernel(cwd=str(folder), startup_timeout=_SECONDS)
    watch = threading.Timer(_SECONDS, lambda: manager.shutdown_kernel(now=True))
    watch.start()
    try:

        def run(code: str, interrupt_at: str = "\0") -> str:
            """What a cell writes, its error's name last."""
            client.execute(code)
            written, began = "", time.monotonic()
            while time.monotonic() - began < _SECONDS:
                try:
                    message = client.get_iopub_msg(timeout=1)
                except Empty:
                    continue
                content = message["content"]
                written += content.get("text", "") + content.get("ename", "") + content.get("evalue", "")
                if interrupt_at in content.get("text", ""):
                    manager.interrupt_kernel()
                    interrupt_at = "\0"
                if message["msg_type"] == "status" and content["execution_state"] == "idle":
                    return written
            raise TimeoutError(written)

        call = "import lqray; swept = lqray.run('small.yaml', {'schedule.iterations': 2000000}, launcher='inline')"
        said = run(call, interrupt_at=": step")
        assert "Interruptedtrials that were running are recorded as KILLED" in said
        assert "[1]" in run("print(list(lqray.report('small', everything=True)['killed']))")
        again = run("print(lqray.run('small.yaml', {'schedule.iterations': 40}, launcher='inline', limit=1).finished)")
        assert "('full_precision',)" in again
    finally:
        watch.cancel()
        client.stop_channels()
        manager.shutdown_kernel(now=True)
