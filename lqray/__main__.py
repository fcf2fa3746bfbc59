"""`python -m lqray` is `lqray`."""

import sys

# Python looks in the working folder first, where a file queue.py would be taken for its own: here it looks there last.
if not sys.flags.safe_path and sys.path:
    sys.path.append(sys.path.pop(0))

from lqray.cli import main

main()
