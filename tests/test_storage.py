"""Caches, checkpoints and results in a bucket: a file system behind s3:// that knows no folders of its own."""

import fsspec
import numpy as np
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from recapture_jax import cache, matrix, pipeline, storage
from recapture_jax.checkpoints import TrainCheckpoints, abstract_like
from recapture_jax.errors import InputError


class Bucket(DirFileSystem):
    """`s3://NAME/KEY` as files of a folder; parents come with the files, as in a bucket."""

    protocol = "s3"
    cachable = False
    root = ""

    def __init__(self, **_):
        super().__init__(path=self.root, fs=LocalFileSystem(auto_mkdir=True))

    def _join(self, path):
        if isinstance(path, str):
            path = path.removeprefix("s3://")
        return super()._join(path)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Where the files of s3:// really are."""
    from etils.epath import backend

    monkeypatch.setenv("EPATH_USE_TF", "false")
    monkeypatch.setattr(Bucket, "root", str(tmp_path / "s3"))
    fsspec.register_implementation("s3", Bucket, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield tmp_path / "s3"
    backend.fsspec_backend._get_filesystem.cache_clear()


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_folder_in_a_bucket_is_there_when_its_last_file_is(bucket, tmp_path):
    target = storage.folder("s3://films/run")
    with pytest.raises(KeyError), storage.atomic_folder(target) as folder:
        (folder / "a").write_text("half")
        raise KeyError
    assert not storage.complete(target) and not names(bucket)
    with storage.atomic_folder(target) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a").write_text("whole")
    assert names(bucket) == ["films/run/_DONE", "films/run/deep/a"]
    assert storage.complete(target) and storage.absolute(target) == "s3://films/run"
    assert storage.download(target, tmp_path / "copy") and names(tmp_path / "copy") == ["deep/a"]
    (bucket / "films" / "run" / "_DONE").unlink()
    assert not storage.download(target, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_folder_that_is_there_stays_unless_it_is_to_be_replaced(bucket):
    target = storage.folder("s3://films/run")
    for text, replace in (("first", False), ("second", False), ("third", True)):
        with storage.atomic_folder(target, replace=replace) as folder:
            (folder / f"{text}.txt").write_text(text)
        kept = "third" if replace else "first"
        assert names(bucket) == ["films/run/_DONE", f"films/run/{kept}.txt"]


def test_a_bucket_without_its_package_is_refused():
    with pytest.raises(InputError, match="gs://films.*(pip install gcsfs|cannot be reached)"):
        storage.folder("gs://films")


def test_another_machine_finds_what_the_first_cached(bucket):
    first = cache.StageCache(storage.folder("s3://films/cache"))
    with first.writing("depth", "k") as folder:
        cache.save_arrays(folder / "depth.npz", {"depth": np.arange(3)})
    other = cache.StageCache(storage.folder("s3://films/cache"))
    assert other.root != first.root and not other.has("depth", "j")
    assert other.has("depth", "k")
    stored = cache.load_arrays(other.entry("depth", "k") / "depth.npz")
    np.testing.assert_array_equal(stored["depth"], np.arange(3))


def test_tuning_goes_on_on_another_machine(bucket):
    mirrors = []
    for steps in ((2, 4, 6), (8,)):
        stages = cache.StageCache(storage.folder("s3://films/cache"))
        work = stages.work("temporal", "k")
        mirrors.append(stages.mirror(work))
        with TrainCheckpoints(work / "checkpoints", 2, keep=2, mirror=mirrors[-1]) as checkpoints:
            latest = checkpoints.latest()
            if latest is not None:
                like = abstract_like({"a": np.zeros(3, np.float32)})
                np.testing.assert_array_equal(checkpoints.restore(latest, like)["a"], [6, 6, 6])
            for step in steps:
                checkpoints.save(step, {"a": np.full(3, step, np.float32)})
    assert latest == 6 and mirrors[0] == mirrors[1]
    stored = {name.split("/")[4] for name in names(bucket)}
    assert stored == {"6", "8"}  # the newest two
    stages.finish(work)
    assert not names(bucket) and not work.exists()


def test_a_run_leaves_its_results_in_the_bucket(bucket, tiny_params, tmp_path_factory):
    from test_pipeline import configure, make_home

    home = make_home(tmp_path_factory.mktemp("bucket"), tiny_params)
    config = configure(home)
    config.output.root = "s3://films/outputs"
    (row,) = matrix.run(
        matrix.combinations(config, [], [], []), storage.folder(config.output.root) / "matrix.json"
    )
    assert row.folder == "s3://films/outputs/clip-orbit-right-10-seed0"
    made = [n for n in names(bucket) if n.startswith("films/outputs/clip-")]
    assert {n.rpartition("/")[2] for n in made} >= {"result.mp4", "run.json", "_DONE"}
    assert "films/outputs/matrix.json" in names(bucket) and not list(home.glob("outputs*"))
    named = matrix.combinations(config, [], [], [])
    assert pipeline.run(named[0]).stages == {"run": "cached"}
