"""How features, matching and mapping are done, and what is tried next when too few photos find their place."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

ENOUGH = 0.9  # share of the photos in one model from which on nothing else is tried
FEW = 0.75  # share below which features are found anew


@dataclass(frozen=True)
class Settings:
    """One way to do it. Pixels are those of the reduced pictures in which features are found."""

    longest: int = 1600  # pixels on the longer side
    first_octave: int = 0  # -1: of pictures enlarged twice, three times the features in three times the time
    n_features: int = 4096
    peak_threshold: float = 0.0066
    max_ratio: float = 0.8
    at_least: int = 6  # matches of preemptive matching; 0 matches every candidate pair in full
    partners: int = 24  # the best of preemptive matching, matched in full, for each photo: so many of a small set
    min_inliers: int = 15
    relaxed: bool = False  # mapping that starts from, and takes in, photos with fewer matches and smaller angles
    name: str = "usual settings"

    def of_features(self) -> dict[str, object]:
        """What must be the same for found features and matches to be used again."""
        return {k: v for k, v in asdict(self).items() if k not in ("relaxed", "name")}


def attempts(share: float, last: Settings) -> Settings | None:
    """What to try after an attempt that placed this share of the photos; None: nothing more."""
    if share < ENOUGH and not last.relaxed:
        return replace(last, relaxed=True, name="lower thresholds in mapping, another first pair")
    if share < FEW and last.first_octave == 0:
        more = replace(last, first_octave=-1, n_features=8192, peak_threshold=0.003, max_ratio=0.85, min_inliers=12)
        return replace(more, at_least=0, partners=100, name="more and weaker features, every pair in full")
    return None
