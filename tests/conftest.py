"""Settings of the whole suite: deterministic hypothesis, and a Ray that never meets another one."""

import os

os.environ["RAY_ADDRESS"] = "local"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "1"

from hypothesis import settings

settings.register_profile("lqray", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("lqray")
