"""A recorded sweep in MLflow's UI, in a real browser: what is recorded is what its pages can show.

Screenshots are kept in $LQRAY_TEST_ARTIFACTS, if set, else in pytest's folder.
"""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from mlflow import MlflowClient

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = [
    *([] if BROWSER else ["chromium (Debian: chromium)"]),
    *([] if DRIVER else ["chromedriver (Debian: chromium-driver)"]),
    *([] if importlib.util.find_spec("selenium") else ["selenium (PyPI)"]),
]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(MISSING), reason=f"the MLflow UI is not looked at without {', '.join(MISSING)}"),
]

TEXT = """# Do two bits cost accuracy?
name: looked-at
base:
  data: {name: digits}
  model: {name: mlp, layers: [16]}
  optimizer: {name: sgd, lr: 0.1}
  schedule: {iterations: 60, batch_size: 16, evaluate_every: 20}
  workers: 2
  quantizer: {bucket_size: 128, update_at: [0, 5]}
  telemetry: {every: 5}
sweep:
  - matrix: {quantizer.method: [full_precision]}
  - matrix: {quantizer.method: [alq, qsgd_inf], quantizer.bits: [2, 3]}
"""
NAMES = ["alq-bits2", "alq-bits3", "full_precision", "qsgd_inf-bits2", "qsgd_inf-bits3"]
GROUPS = ["alq, bits 2", "alq, bits 3", "full_precision", "qsgd_inf, bits 2", "qsgd_inf, bits 3"]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1900,1400"
)

# The assistant that MLflow offers would take a third of each page.
NO_ASSISTANT = """
try {
  localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true")
  localStorage.setItem("mlflow.assistant.panelOpen_v1", "false")
} catch (error) {}
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """A sweep's file, recorded beside it."""
    path = tmp_path_factory.mktemp("ui") / "looked-at.yaml"
    path.write_text(TEXT)
    command = [sys.executable, "-m", "lqray", "run", path.name, "--launcher", "inline"]
    subprocess.run(command, cwd=path.parent, check=True, capture_output=True, timeout=600)
    return path


@pytest.fixture(scope="module")
def address(sweep):
    """Of the UI, as `lqray ui` says."""
    server = subprocess.Popen(
        [sys.executable, "-m", "lqray", "ui", sweep.name, "--port", "5730", "--no-browser"],
        cwd=sweep.parent,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        url = server.stdout.readline().strip()
        assert url.endswith("viewStateShareKey=lqray"), url
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


class Browser:
    def __init__(self, driver, shots: Path):
        self.driver, self._shots = driver, shots

    @property
    def text(self) -> str:
        return self.driver.execute_script("return document.body.innerText") or ""

    def open(self, url: str) -> None:
        self.driver.get("about:blank")  # a change of the fragment alone would not load it anew
        self.driver.get(url)

    def wait(self, ready: Callable[[], bool], shot: str, seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.3)
        self.driver.save_screenshot(str(self._shots / f"{shot}.png"))
        assert ready(), f"{shot}: after {seconds:g} s the page says:\n{self.text}"

    def shows(self, *texts: str) -> Callable[[], bool]:
        return lambda: all(text in self.text for text in texts)

    def count(self, selector: str) -> int:
        return self.driver.execute_script("return document.querySelectorAll(arguments[0]).length", selector)

    def texts(self, selector: str) -> set[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)"
        return set(self.driver.execute_script(script, selector))

    def headers(self) -> list[str]:
        """Of the table's columns, from left to right: in the document they stand as they were made."""
        script = """
          return [...document.querySelectorAll(".ag-header-cell")]
            .sort((one, other) => one.getBoundingClientRect().left - other.getBoundingClientRect().left)
            .map(one => one.innerText.trim())
        """
        return self.driver.execute_script(script)

    def choose(self, number: int, text: str) -> None:
        """In the page's combobox of this number."""
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys

        box = self.driver.find_elements(By.CSS_SELECTOR, "input[role=combobox]")[number]
        box.send_keys(text)
        time.sleep(0.5)  # the list follows what is typed
        box.send_keys(Keys.ENTER, Keys.ESCAPE)

    def click(self, selector: str) -> None:
        self.driver.execute_script("document.querySelector(arguments[0]).click()", selector)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    shots = Path(os.environ.get("LQRAY_TEST_ARTIFACTS") or tmp_path_factory.mktemp("screenshots"))
    shots.mkdir(parents=True, exist_ok=True)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": NO_ASSISTANT})
        yield Browser(driver, shots)
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def recorded(sweep):
    client = MlflowClient(f"sqlite:///{sweep.parent}/lqray.db")
    experiment = client.get_experiment_by_name("looked-at")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == NAMES
    assert all(run.data.metrics["wire/total_bytes_sent"] > 0 for run in runs.values())
    return experiment.experiment_id, runs


def test_the_experiment_lists_its_runs_and_says_what_it_asks(browser, address, recorded):
    experiment_id, _ = recorded
    browser.open(f"{address.partition('#')[0]}#/experiments/{experiment_id}/runs")
    browser.wait(browser.shows(*NAMES, "Do two bits cost accuracy?"), "runs")
    browser.click("[data-component-id='mlflow.experiment.metadata_editor.expand_button']")
    browser.wait(browser.shows("5 trials: 5 finished", "Best test accuracy", "lqray report looked-at"), "description")


def test_the_address_opens_charts_of_groups_with_their_baseline(browser, address, recorded):
    """In the mode of model training, the experiment's own section first."""
    browser.open(address)
    said = [f"Group: {name}" for name in GROUPS]
    said += ["Group by: lqray.group", "Sort: test/accuracy", "lqray: methods and their baseline"]
    browser.wait(browser.shows("Comparison", "(6)", *said), "charts")
    assert "Evaluation runs" not in browser.text  # of the other mode
    sections = re.findall(r"(?m)^([A-Za-z/ ]+)\s*\(\d+\)$", browser.text)
    assert [one.strip() for one in sections][:2] == ["Comparison", "test"], browser.text
    browser.wait(browser.shows("test/accuracy", "difference/from_baseline"), "charts")
    browser.wait(lambda: browser.count("svg.main-svg .bars path, svg.main-svg .scatterlayer path") > 4, "charts")


def test_the_table_has_the_columns_of_a_comparison(browser, address, recorded):
    browser.open(address.replace("compareRunsMode=CHART", "compareRunsMode=TABLE"))
    columns = ["quantizer.method", "quantizer.bits", "test/accuracy", "difference/from_baseline"]
    browser.wait(browser.shows(*columns, *(f"Group: {name}" for name in GROUPS)), "table")
    order = [*columns[:2], "wire/bits_per_coordinate", "wire/total_bytes_sent", *columns[2:]]
    browser.wait(lambda: [one for one in browser.headers() if one in order] == order, "table")


def test_the_list_of_experiments_has_sweeps_alone(browser, address):
    browser.open(f"{address.partition('#')[0]}#/experiments")
    browser.wait(browser.shows("looked-at", "Default"), "experiments")
    assert "lqray-leases" not in browser.text
    assert "lqray.plan" not in browser.text


def test_four_runs_compare(browser, address, recorded):
    experiment_id, runs = recorded
    names = [name for name in NAMES if name != "full_precision"]  # which has no bits to be drawn
    chosen = quote(json.dumps([runs[name].info.run_id for name in names]))
    base = address.partition("#")[0]
    browser.open(f"{base}#/compare-runs?runs={chosen}&experiments={quote(json.dumps([experiment_id]))}")
    browser.wait(browser.shows("Comparing 4 Runs", "Parallel Coordinates Plot", *names, "exchange.buckets"), "compare")
    browser.wait(lambda: browser.count(".parcoords .y-axis") > 0, "compare")
    for metric in ("test/accuracy", "wire/total_bytes_sent"):
        browser.choose(1, metric)
    axes = {"quantizer.method", "quantizer.bits", "test/accuracy", "wire/total_bytes_sent"}
    browser.wait(lambda: axes <= browser.texts(".parcoords .axis-title"), "parallel-coordinates")
