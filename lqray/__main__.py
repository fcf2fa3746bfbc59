"""`python -m lqray` is `lqray`."""

import sys

# Python looks in the working folder first, where a file queue.py would be taken for its own: here it looks there last.
if not sys.flags.safe_path and sys.path:
    sys.path.append(sys.path.pop(0))

if sys.version_info < (3, 11):  # noqa: UP036  where it was not installed, but sent
    sys.exit(f"Error: lqray needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}")
try:
    from lqray.cli import main
except ModuleNotFoundError as error:
    from lqray.experiment.requirements import what_is_missing

    if not (line := what_is_missing(error)):
        raise
    sys.exit(line)

main()
