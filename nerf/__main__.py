"""`python -m nerf` is the command `nerf`."""

import os
import sys

# `-m` puts the current folder before Python's own library: a json.py that lies among the photos would be run
if not getattr(sys.flags, "safe_path", False) and not sys.flags.isolated and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from nerf.cli.main import main

main()
