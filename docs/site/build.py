"""Builds the site: `make docs`, or `python docs/site/build.py [FOLDER]`, by default build/site. A warning is an error.

FOLDER/index.html opens in a browser as it is, search included, without a server and without a network.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pages
from options_page import UndocumentedError
from sphinx.cmd.build import build_main


def build(folder: Path) -> int:
    """Write the site to a folder, which is emptied first; give the exit code back."""
    with tempfile.TemporaryDirectory() as temporary:
        source, built = Path(temporary) / "source", Path(temporary) / "built"
        source.mkdir()
        try:
            staged = pages.stage(source)
        except (pages.SiteError, pages.NoPictureError, UndocumentedError) as error:
            sys.stderr.write(f"Error: {error}\n")
            return 2
        settings = ["-c", str(Path(__file__).resolve().parent), "-d", str(Path(temporary) / "doctrees")]
        code = build_main(["-b", "html", "-q", "-W", "--keep-going", *settings, str(source), str(built)])
        if code == 0:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(built, folder, ignore=shutil.ignore_patterns(".buildinfo"))
            sys.stdout.write(f"{folder}/index.html: {len(staged)} pages\n")
        return code


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Build the site.")
    parser.add_argument("folder", nargs="?", type=Path, default=pages.ROOT / "build" / "site")
    sys.exit(build(parser.parse_args().folder))


if __name__ == "__main__":
    main()
