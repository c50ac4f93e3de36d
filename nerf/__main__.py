"""`python -m nerf` is the command `nerf`."""

from nerf.cli import main

main()
