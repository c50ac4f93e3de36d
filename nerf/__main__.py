"""`python -m nerf` is the command `nerf`."""

from nerf.cli.main import main

main()
