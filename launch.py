#!/usr/bin/env python3
"""The door of the launcher: `python launch.py VERB …`. `python launch.py --help` lists the verbs."""

import sys

from rankrun.launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
