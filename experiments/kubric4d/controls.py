"""The moves of an evaluation: a JSON file in the published schema, or our own seeded draws.

    {"scn02900": {"sample_00": {"spherical_start": [15, 5, 15], "spherical_end": [az, el, r],
                                "frame_start": 3, "frame_skip": 2}, ...}, ...}

Our draws follow GCD's training ranges with the start fixed at the input camera. They make results
equivalent in protocol, not the published controls; every record of a run says which were used.
"""

import json
import pathlib
from dataclasses import asdict, dataclass

import numpy as np

from experiments.kubric4d import rig
from recapture_jax.errors import InputError

AZIMUTH_DELTA, ELEVATION_DELTA, RADIUS_DELTA = 90.0, 30.0, 3.0
ELEVATIONS, RADII = (0.0, 50.0), (12.0, 18.0)
MAX_SKIP, MAX_START = 4, 6


@dataclass(frozen=True)
class Control:
    """One move: spherical coordinates of its ends and the recorded frames it spans.

    Attributes:
        spherical_start, spherical_end: (azimuth deg, elevation deg, radius m).
        frame_start: first recorded frame; frame_skip: every n-th is taken.
    """

    spherical_start: tuple[float, float, float]
    spherical_end: tuple[float, float, float]
    frame_start: int
    frame_skip: int

    def frames(self, count: int = rig.NUM_FRAMES) -> np.ndarray:
        """Indices `[count]` of the recorded frames."""
        return self.frame_start + self.frame_skip * np.arange(count)

    def poses(self, count: int = rig.NUM_FRAMES) -> np.ndarray:
        """World_from_target `[count, 4, 4]`."""
        return rig.gradual(self.spherical_start, self.spherical_end, count)


Controls = dict[str, dict[str, Control]]


def draw(
    scene: str,
    index: int,
    seed: int = 0,
    num_frames: int = rig.NUM_FRAMES,
    split: str = "test",
) -> Control:
    """Our move number `index` of a scene; the same for the same name, index, seed and split.

    split: of rendered scenes, which have the same names in every split. Recorded ones have names of their own.
    """
    salt = b"" if split == "test" else split.encode()
    rng = np.random.default_rng([seed, index, *scene.encode(), *salt])
    start = rig.SOURCE
    low = max(start[1] - ELEVATION_DELTA, ELEVATIONS[0])
    high = min(start[1] + ELEVATION_DELTA, ELEVATIONS[1])
    sine = rng.uniform(*np.sin(np.radians([low, high])))  # even over the sphere
    end = (
        start[0] + rng.uniform(-AZIMUTH_DELTA, AZIMUTH_DELTA),
        float(np.degrees(np.arcsin(sine))),
        float(np.clip(start[2] + rng.uniform(-RADIUS_DELTA, RADIUS_DELTA), *RADII)),
    )
    skip = int(rng.integers(1, MAX_SKIP + 1))
    spare = rig.RECORDED_FRAMES - 1 - skip * (num_frames - 1)
    return Control(start, end, int(rng.integers(0, min(MAX_START, spare) + 1)), skip)


def generate(scenes: list[str], samples: int = 1, seed: int = 0, split: str = "test") -> Controls:
    """`samples` moves for each scene; split: see `draw`."""
    return {
        s: {f"sample_{i:02d}": draw(s, i, seed, split=split) for i in range(samples)}
        for s in scenes
    }


def write(controls: Controls, path: pathlib.Path) -> None:
    """Writes the JSON file."""
    data = {s: {k: asdict(c) for k, c in moves.items()} for s, moves in controls.items()}
    path.write_text(json.dumps(data, indent=1) + "\n")


def read(path: pathlib.Path) -> Controls:
    """Reads a JSON file of this schema; other keys of a sample are ignored.

    Raises:
        InputError: no such file, or something that is not the schema; the message says where.
    """
    try:
        data = json.loads(pathlib.Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such controls file") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict) or not all(isinstance(v, dict) for v in data.values()):
        raise InputError(f"{path}: expected {{scene: {{sample: {{spherical_start, ...}}}}}}")
    return {
        scene: {
            name: _control(values, f"{path}: {scene}/{name}") for name, values in samples.items()
        }
        for scene, samples in data.items()
    }


def _control(values, where: str) -> Control:
    try:
        start, end = (tuple(float(x) for x in values[f"spherical_{n}"]) for n in ("start", "end"))
        control = Control(start, end, int(values["frame_start"]), int(values["frame_skip"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{where} has no valid {error}: expected spherical_start, spherical_end, frame_start, "
            "frame_skip"
        ) from None
    if len(start) != 3 or len(end) != 3 or not np.isfinite([start, end]).all():
        raise InputError(f"{where}: expected [azimuth, elevation, radius] in degrees and metres")
    if control.frame_start < 0 or control.frame_skip < 1 or min(start[2], end[2]) <= 0:
        raise InputError(f"{where}: expected frame_start >= 0, frame_skip >= 1, radii above 0")
    return control
