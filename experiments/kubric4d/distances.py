"""FVD and FID of every row: features of each clip are kept, the distances are of all clips there are."""

import pathlib
from collections.abc import Callable, Iterable

import numpy as np

from recapture_jax.evaluation import features
from recapture_jax.evaluation.frechet import frechet_distance

TRUTH = "truth"
FROM_FRAME = {"fvd": 0, "fid": 1}
"""First frame that counts: I3D sees whole clips; frame 0 alone is the source's own."""
_NETWORKS = {"fvd": features.i3d, "fid": features.inception}
KINDS = tuple(_NETWORKS)


class FeatureStore:
    """Features of the clips of a folder, a file for each kind, row and clip.

    Args:
        folder: made if needed.
        wanted: some of 'fvd', 'fid'.
        networks: a function that loads the feature network of each kind; the packaged ones by default.

    Raises:
        InputError: a network's package is not installed.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        wanted: Iterable[str],
        networks: dict[str, Callable[[], features.Features]] | None = None,
    ):
        self._folder = folder
        self._networks = {kind: (networks or _NETWORKS)[kind]() for kind in wanted}

    def add(self, row: str, clip: str, frames: np.ndarray) -> None:
        """Keeps the features of `frames` `[T, H, W, 3]` in [0, 1]."""
        for kind, network in self._networks.items():
            path = self._path(kind, row, clip)
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            shown = frames[FROM_FRAME[kind] :]
            found = network(shown[None] if kind == "fvd" else shown)
            temporary = path.with_suffix(".tmp.npy")
            np.save(temporary, found.astype(np.float32))
            temporary.replace(path)

    def missing(self, row: str, clip: str) -> list[str]:
        """The kinds, of those wanted, of which no features of this clip are there."""
        return [kind for kind in self._networks if not self._path(kind, row, clip).exists()]

    def distances(self, rows: Iterable[str]) -> dict[str, dict[str, float]]:
        """{row: {kind: distance to the truth}} over the clips that both have; two or more."""
        found = {}
        for row in rows:
            for kind in self._networks:
                clips = self._clips(kind, row) & self._clips(kind, TRUTH)
                if len(clips) > 1:
                    sets = [self._read(kind, name, clips) for name in (row, TRUTH)]
                    found.setdefault(row, {})[kind] = frechet_distance(*sets)
        return found

    def _path(self, kind: str, row: str, clip: str) -> pathlib.Path:
        return self._folder / kind / row / f"{clip}.npy"

    def _clips(self, kind: str, row: str) -> set[str]:
        return {p.stem for p in (self._folder / kind / row).glob("*.npy") if ".tmp" not in p.name}

    def _read(self, kind: str, row: str, clips: set[str]) -> np.ndarray:
        return np.concatenate([np.load(self._path(kind, row, c)) for c in sorted(clips)])
