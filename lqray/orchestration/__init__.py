"""Sweeps: their launches, with Ray and without, and what they leave in MLflow."""

import os

# Read when Ray is imported. Whatever is asked of a Ray that has ended is an error: by default it would start another
# one with the user's temporary files, a dashboard and every core (seen after a raylet was killed).
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
