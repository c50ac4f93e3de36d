"""What the check found, for people, for programs and for the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from nerf.errors import printable

KINDS = (  # of findings
    *("axes", "inverted", "transposed", "mirrored", "turned", "order", "swapped", "camera", "one-point", "outlier"),
    *("size", "focal", "distortion", "principal-point", "pixels", "contradiction", "moving"),
    *("exposure", "vignetting", "flash"),
    *("mask-size", "mask-inverted", "mask-empty", "mask-contradicts", "not-a-silhouette", "black-border"),
)
LIGHT = ("exposure", "vignetting", "flash")  # of these kinds, what training can learn


@dataclass
class Finding:
    """One thing that is wrong with a data set, or would be better otherwise.

    >>> Finding("exposure", "the photos' exposure differs by up to 1.2 stops", fix="--exposure").is_wrong
    False
    """

    kind: str
    """what it is about, one of KINDS"""
    sentence: str
    """what is wrong and what would fit instead"""
    photos: list[str] = field(default_factory=list)
    """names of the photos it is about; empty: of all"""
    fix: str = ""
    """the option that applies or helps, or what to do; empty where nothing is known"""
    is_wrong: bool = False
    """whether training on it cannot go well; else it is advice"""
    numbers: dict[str, float] = field(default_factory=dict)
    """the measurements it rests on"""
    cameras_are: str = ""
    """the option `cameras_are` (--cameras-are) that takes the cameras as those that fit; empty: none does"""


@dataclass
class Verdict:
    """Whether photos fit their cameras, lenses and masks, and what contradicts what.

    >>> Verdict("fits", 0.31, n_photos=40, n_looked_at=40, n_pairs=88).paragraph()
    'The photos fit their cameras: 0.3 px off in the middle (88 pairs of 40 photos).'
    """

    state: Literal["fits", "contradicts", "not judged"]
    """"not judged" where too little can be matched to say anything; never an alarm"""
    pixels: float | None = None
    """median distance of matches from the epipolar lines of the cameras, pixels of the photos"""
    n_photos: int = 0
    n_looked_at: int = 0
    n_pairs: int = 0
    """of photos that show enough of the same to say something"""
    findings: list[Finding] = field(default_factory=list)
    why: str = ""
    """why it was not judged"""
    not_judged: list[str] = field(default_factory=list)
    """photos that could not be matched to any other"""
    seconds: float = 0.0
    picture: np.ndarray | None = field(default=None, repr=False)
    """[h,w,3] uint8, the pair that fits least, with its matches and epipolar lines"""
    picture_says: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether something was found that training cannot go well with."""
        return any(finding.is_wrong for finding in self.findings)

    def light(self) -> dict[str, bool]:
        """What of the photos' light a training is to learn: see LIGHT."""
        kinds = {finding.kind for finding in self.findings}
        return {name: name in kinds for name in LIGHT}

    def paragraph(self) -> str:
        """All of it for a person, in one paragraph."""
        parts = []
        of = f"{self.n_pairs} pairs of {self.n_looked_at} photos"
        if self.n_looked_at < self.n_photos:
            of += f", of {self.n_photos}"
        off = "" if self.pixels is None else f"{self.pixels:.1f} px off in the middle"
        if self.state == "fits":
            parts.append(f"The photos fit their cameras: {off} ({of}).")
        elif self.state == "contradicts":
            parts.append(f"The photos contradict what is given with them ({off + '; ' if off else ''}{of}).")
        else:
            parts.append(f"Whether the photos fit their cameras could not be judged: {self.why}.")
        for finding in self.findings:
            words = finding.sentence[:1].upper() + finding.sentence[1:]
            flag = f"--cameras-are {finding.cameras_are} takes them so" if finding.cameras_are else ""
            remedy = ", or ".join(filter(None, (flag, finding.fix)))
            parts.append(f"{words}{': ' + remedy if remedy else ''}.")
        if self.state != "not judged" and self.not_judged:
            n = len(self.not_judged)
            some = "1 photo" if n == 1 else f"{n} photos"
            parts.append(f"{some} could not be matched to others, and so not judged.")
        return printable(" ".join(parts))

    def to_json(self) -> dict[str, Any]:
        """What check.json holds."""
        said = asdict(self)
        del said["picture"]
        said["seconds"] = round(self.seconds, 2)
        return said | {"paragraph": self.paragraph()}


def some(names: list[str], limit: int = 4) -> str:
    """The first few of many names."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
