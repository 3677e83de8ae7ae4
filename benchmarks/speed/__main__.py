"""`python benchmarks/speed`."""

import sys
from pathlib import Path

# Python puts this directory on the path. The package is in the one above, and is not installed.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from speed.command import app

if __name__ == "__main__":
    app(prog_name="speed")
