"""The TFDS builder on a miniature in the real layout, and on scenes of our own."""

import importlib.util
import warnings

import numpy as np
import pytest

from experiments.kubric4d import controls, rendered, rig

MISSING = [
    name
    for name in ("tensorflow", "tensorflow_datasets", "array_record")
    if importlib.util.find_spec(name) is None
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed (extra 'tfds'): {MISSING}")
SIZE = (32, 48)
VIEWS = range(5)


def build(config, tmp_path, manual):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TensorFlow
        import tensorflow_datasets as tfds

        from experiments.kubric4d.kubric4d_dataset_builder import Builder

        builder = Builder(data_dir=tmp_path / "tfds", config=config(tfds))
        assert builder.name == "kubric4d"
        download = tfds.download.DownloadConfig(manual_dir=manual)
        builder.download_and_prepare(download_config=download, file_format="array_record")
        return {s: list(builder.as_data_source(s)) for s in builder.info.splits}


def test_builds_from_manual_dir(tmp_path):
    manual = tmp_path / "manual"
    options = {"num_frames": 14, "size": (64, 96), "views": VIEWS}
    rendered.write(manual / "data", [2900, 5, 2801], **options)  # no move for the last
    move = controls.Control(rig.SOURCE, (35.0, 15.0, 14.0), 0, 1)
    moves = {s: {"sample_00": move} for s in ("scn02900", "scn00005")}
    controls.write(moves, manual / "kubric_valtest_controls_gradual.json")

    def config(tfds):
        from experiments.kubric4d.kubric4d_dataset_builder import Config

        return Config(name="tiny", size=SIZE, views=tuple(VIEWS))

    splits = build(config, tmp_path, manual)
    assert sorted(splits) == ["test", "train"]
    (example,) = splits["test"]
    assert example["scene"] == b"scn02900" and example["truth"] == b"splat"
    assert example["source"].shape == (14, *SIZE, 3) and example["source"].dtype == np.float32
    np.testing.assert_allclose(example["source"][0], example["target"][0], atol=1e-6)
    assert not example["occluded"][0].any() and example["occluded"][-1].any()
    np.testing.assert_allclose(example["spherical_end"], move.spherical_end)


def test_builds_rendered_scenes(tmp_path):
    (tmp_path / "manual").mkdir()
    (tmp_path / "manual" / "note.txt").touch()

    def config(tfds):
        from experiments.kubric4d.kubric4d_dataset_builder import Config

        return Config(name="few", size=SIZE, counts={"test": 2})

    splits = build(config, tmp_path, tmp_path / "manual")
    assert [e["truth"] for e in splits["test"]] == [b"exact"] * 2
    first, second = (e["target"] for e in splits["test"])
    assert np.abs(first - second).mean() > 0.02
