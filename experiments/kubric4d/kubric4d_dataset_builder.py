"""TFDS builder `kubric4d`; needs the packages tensorflow-datasets, tensorflow and array_record.

    from experiments.kubric4d.kubric4d_dataset_builder import Builder
    builder = Builder(config="rendered")                       # or "gradual", with manual_dir
    builder.download_and_prepare(file_format="array_record")
    data = builder.as_data_source("test")

Arrays are float32: what is scored is not rounded to bytes.
"""

import dataclasses
import pathlib

import tensorflow_datasets as tfds

from experiments.kubric4d import controls, examples, layout, rig
from experiments.kubric4d.protocol import SIZES

CONTROLS = "kubric_valtest_controls_gradual.json"


@dataclasses.dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
    """What to build.

    Attributes:
        size: (height, width) of the examples.
        counts: scenes per split of our renderer; None reads Kubric-4D from manual_dir.
        views: cameras whose points are merged, for Kubric-4D.
        faithful: see `pointcloud`.
    """

    size: tuple[int, int] = SIZES["full"]
    counts: dict[str, int] | None = None
    views: tuple[int, ...] = tuple(range(len(rig.VIEWS)))
    faithful: bool = True


class Builder(tfds.core.GeneratorBasedBuilder):
    """Clips of a still camera and of one that moves gradually away from it, with occlusion masks."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Gradual dynamic view synthesis, 14 frames."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""
    For 'gradual': scene folders scn00000, ... of Kubric-4D (gcd.cs.columbia.edu), or data/ with
    them, and beside them {CONTROLS} of the GCD repository: scenes that it has no moves for are left out.
    Without that file moves are drawn.
    'rendered' needs nothing, but TFDS wants the folder to exist.
    """
    BUILDER_CONFIGS = [
        Config(name="gradual", description="Kubric-4D, ground truth splatted as GCD does."),
        Config(
            name="rendered",
            description="Our renderer under the same cameras, exact views.",
            counts={"validation": 20, "test": 50},
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        features = {name: tfds.features.Text() for name in ("scene", "sample", "truth")}
        for name, (shape, dtype) in examples.feature_shapes(self.builder_config.size).items():
            features[name] = tfds.features.Tensor(shape=shape, dtype=dtype, encoding="zlib")
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        config = self.builder_config
        if config.counts is not None:
            return {
                split: self._generate_examples(examples.rendered(split, count, config.size))
                for split, count in config.counts.items()
            }
        folder = pathlib.Path(dl_manager.manual_dir)
        root = layout.data_root(folder)
        given = controls.read(folder / CONTROLS) if (folder / CONTROLS).exists() else None
        options = {"views": config.views, "faithful": config.faithful}
        return {
            split: self._generate_examples(
                examples.recorded(root, scenes, config.size, given, **options)
            )
            for split, scenes in examples.recorded_splits(root, given).items()
        }

    def _generate_examples(self, pairs):
        yield from pairs
