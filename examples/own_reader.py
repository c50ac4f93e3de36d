"""A format of one's own, made up here: poses.txt, a line for each photo.

    NAME FOCAL  r11 r12 r13 x  r21 r22 r23 y  r31 r32 r33 z

FOCAL is in pixels; the twelve numbers are the rows of the pose, camera to world, of a camera that looks along -z with y
up. The command line knows the format once it is told of this file:

    NERF_READERS=examples/own_reader.py nerf train DATA -o RUN --kind poses_txt
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import nerf


@nerf.reader("poses_txt", tells="poses.txt", help="poses.txt (the example of a reader)", file=".txt")
def read_poses_txt(file: Path) -> nerf.ParsedScene:
    """One frame for each line; `load` checks poses, lenses and photos as it does for every format."""
    frames = []
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        where = f"{file.name}, line {number}"
        try:
            name, *words = line.split()
            focal, *pose = map(float, words)
            c2w = np.reshape(pose, (3, 4))
        except ValueError as error:
            raise nerf.UserError(f"{where}: expected a name, a focal length and 12 numbers ({error})") from error
        frames.append(nerf.Frame(name, file.parent / name, c2w, nerf.Lens(fx=focal, fy=focal), where))
    return nerf.ParsedScene("poses_txt", file.parent, frames, notes=[f"{len(frames)} poses from {file.name}"])
