"""Programs are compiled once per shape: counted by JAX's own events, from its cache on disk."""

import collections
import json
import pathlib
import re

import jax
import programs
import pytest
from jax.experimental.compilation_cache import compilation_cache
from test_pipeline import configure, home  # noqa: F401  a fixture

from recapture_jax import pipeline
from recapture_jax.config import default_config
from recapture_jax.tuning import loop
from recapture_jax.video.resize import fit_size


@pytest.fixture
def events(tmp_path):
    """Counts of JAX's events, with an empty cache of compiled programs."""
    counts = collections.Counter()

    def count(event, **_):
        counts[event.rpartition("/")[2]] += 1

    directory = jax.config.jax_compilation_cache_dir
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    _keep_programs(str(tmp_path / "xla"), 0.0)
    jax.monitoring.register_event_listener(count)
    yield counts
    jax.monitoring.unregister_event_listener(count)
    _keep_programs(directory, least)


def _keep_programs(directory, least):
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    compilation_cache.reset_cache()
    programs.forget()


def test_a_second_start_of_the_same_shape_compiles_nothing(home, events):  # noqa: F811
    """Another seed and another move: the same shapes, so the same programs."""
    config = configure(home, root="compiled")
    config.output.compilation_cache = True
    pipeline.run(config)
    assert events["cache_misses"] > 10  # all of it was new
    events.clear()
    programs.forget()
    again = configure(home, root="again", moves="orbit left 5", seed=3)
    again.output.compilation_cache = True
    assert set(pipeline.run(again).stages.values()) == {"computed"}
    assert events["cache_hits"] > 10 and events["cache_misses"] == 0


def test_a_second_run_of_a_process_compiles_no_tuning_step(home):  # noqa: F811
    first = pipeline.run(configure(home, root="one"))
    before = loop._compile.cache_info()
    moved = configure(home, root="two", moves="orbit left 5", seed=3)
    second = pipeline.run(moved)
    after = loop._compile.cache_info()
    assert after.misses == before.misses and after.hits == before.hits + 2
    files = (json.loads((r.folder / "run.json").read_text()) for r in (first, second))
    losses = [[part["last"] for part in report["tuning"].values()] for report in files]
    assert losses[0] != losses[1]  # the seed is data of the program, not part of it


def test_the_documented_sizes_are_those_of_runs():
    text = (pathlib.Path(__file__).parent.parent / "docs" / "performance.md").read_text()
    rows = re.findall(r"^\| (\d+)x(\d+) \| (\S+) \| (\S+) \| (\S+) \|$", text, re.MULTILINE)
    assert len(rows) >= 8
    small = default_config("small").video
    assert (small.short_side, small.multiple) == (96, 32)
    for width, height, *told in rows:
        for size, (side, multiple) in zip(told, ((576, 64), (320, 64), (96, 32)), strict=True):
            fitted = fit_size(int(height), int(width), short_side=side, multiple=multiple)
            assert size == "x".join(map(str, fitted))
