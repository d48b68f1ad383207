"""`python -m rankrun` and the console command `rankrun`: the same door as launch.py."""

import sys

from rankrun.launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
