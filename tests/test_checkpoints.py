"""Checkpoints: exact round trips, refusals in one line, and a kill -9 in the middle of a save."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from recapture_jax.checkpoints import TrainCheckpoints, abstract_like, restore_tree, save_tree
from recapture_jax.errors import InputError


def _tree():
    rng = np.random.default_rng(0)
    return {
        "a": {
            "kernel": rng.standard_normal((3, 4)).astype(np.float32),
            "scale": rng.standard_normal(5).astype(ml_dtypes.bfloat16),
        },
        "b": jnp.asarray(rng.standard_normal((2, 2)), jnp.bfloat16),
        "half": np.ones((1,), np.float16),
        "count": jnp.int32(3),
    }


def _assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert isinstance(x, jax.Array)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_round_trip_keeps_every_bit_and_dtype(tmp_path):
    tree = _tree()
    save_tree(tmp_path / "new" / "tree", tree)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["tree"]
    _assert_equal(restore_tree(tmp_path / "new" / "tree", abstract_like(tree)), tree)


def test_readable_by_the_standard_checkpointer(tmp_path):
    tree = {"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    save_tree(tmp_path / "t", tree)
    with ocp.StandardCheckpointer() as checkpointer:
        read = checkpointer.restore(tmp_path / "t", abstract_like(tree))
    np.testing.assert_array_equal(read["a"]["b"], tree["a"]["b"])


def test_floats_are_cast_to_the_requested_dtype(tmp_path):
    save_tree(tmp_path / "t", {"a": np.array([1.0, 1.00390625, 3.0], ml_dtypes.bfloat16)})
    read = restore_tree(tmp_path / "t", {"a": jax.ShapeDtypeStruct((3,), jnp.float32)})
    assert read["a"].dtype == jnp.float32
    np.testing.assert_array_equal(read["a"], np.array([1.0, 1.0, 3.0], np.float32))


def test_restored_into_the_requested_sharding(tmp_path):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    save_tree(tmp_path / "t", {"a": np.arange(4.0, dtype=np.float32)})
    abstract = {"a": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding)}
    assert restore_tree(tmp_path / "t", abstract)["a"].sharding == sharding


def _struct(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    ("abstract", "words"),
    [
        ({"a": _struct(2, 3)}, ["+b (4,)"]),
        ({"a": _struct(2, 3), "b": _struct(4), "c": {"d": _struct(1)}}, ["-c/d (1,)"]),
        ({"a": _struct(3, 2), "b": _struct(4)}, ["a (2, 3) is not (3, 2)"]),
        ({"a": _struct(2, 3), "b": _struct(4, dtype=jnp.int32)}, ["float32 is not int32"]),
        ({f"n{i:02}": _struct(1) for i in range(40)}, ["-n00 (1,)", "... 34 more", "+a", "+b"]),
    ],
)
def test_mismatch_is_one_line_with_a_list(tmp_path, abstract, words):
    save_tree(tmp_path / "t", {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float32)})
    with pytest.raises(InputError) as error:
        restore_tree(tmp_path / "t", abstract)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_refusals(tmp_path):
    save_tree(tmp_path / "t", {"a": np.zeros(2, np.float32)})
    with pytest.raises(InputError, match="exists already"):
        save_tree(tmp_path / "t", {"a": np.ones(2, np.float32)})
    with pytest.raises(InputError, match="no arrays"):
        save_tree(tmp_path / "empty", {})
    with pytest.raises(InputError, match="no checkpoint at"):
        restore_tree(tmp_path / "nowhere", {"a": _struct(2)})
    np.testing.assert_array_equal(restore_tree(tmp_path / "t", {"a": _struct(2)})["a"], [0.0, 0.0])


@pytest.mark.parametrize("victim", ["_METADATA", "manifest.ocdbt", "d"])
def test_damaged_checkpoint_is_one_line(tmp_path, victim):
    save_tree(tmp_path / "t", {"a": np.zeros(2000, np.float32)})
    path = tmp_path / "t" / victim
    files = list(path.iterdir()) if path.is_dir() else [path]
    # Values live in the data files, which Orbax may keep in the per-process folder.
    if victim == "d":
        files += list((tmp_path / "t").glob("ocdbt.process_*/d/*"))
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match="is damaged") as error:
        restore_tree(tmp_path / "t", {"a": _struct(2000)})
    assert "\n" not in str(error.value)


def _state(step):
    params = {"down/attn1/to_q": {"a": jnp.full((4, 2), float(step)), "b": jnp.zeros((2, 4))}}
    return {"lora": params, "opt": optax.adamw(1e-3).init(params), "step": jnp.int32(step)}


def test_train_checkpoints_every_keep_and_resume(tmp_path):
    with TrainCheckpoints(tmp_path / "c", every=2, keep=2) as checkpoints:
        assert checkpoints.latest() is None
        written = [checkpoints.save(step, _state(step)) for step in range(1, 8)]
        assert written == [False, True, False, True, False, True, False]
        assert checkpoints.save(7, _state(7), force=True)
        assert not checkpoints.save(7, _state(8), force=True)
        assert checkpoints.latest() == 7
    with TrainCheckpoints(tmp_path / "c", every=2, keep=2) as checkpoints:
        assert checkpoints.latest() == 7
        _assert_equal(checkpoints.restore(7, abstract_like(_state(0))), _state(7))
        _assert_equal(checkpoints.restore(6, abstract_like(_state(0))), _state(6))
        with pytest.raises(InputError, match="no checkpoint of step 4 .*present: 6, 7"):
            checkpoints.restore(4, abstract_like(_state(0)))
        smaller = abstract_like({"lora": _state(0)["lora"], "step": jnp.int32(0)})
        with pytest.raises(InputError, match=r"\+opt/0/mu/down/attn1/to_q/a \(4, 2\)"):
            checkpoints.restore(7, smaller)


def test_train_checkpoints_refuse_bad_arguments(tmp_path):
    with pytest.raises(InputError, match="every >= 1"):
        TrainCheckpoints(tmp_path, every=0, keep=1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        TrainCheckpoints(tmp_path / "file", every=1, keep=1)


_KILLED = """
    import os, signal, sys
    import jax.numpy as jnp
    from recapture_jax.checkpoints import TrainCheckpoints

    checkpoints = TrainCheckpoints(sys.argv[1], every=1, keep=3)
    checkpoints.save(1, {"a": jnp.ones(1000)})
    # From here on the first file of the next step that is moved into place kills the process:
    # everything has been written then, but the step has not been committed.
    def kill(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)
    os.rename = os.replace = kill
    checkpoints.save(2, {"a": jnp.full(1000, 2.0)})
    print("survived")
"""


def test_kill_in_the_middle_of_a_save_leaves_the_step_before(tmp_path):
    root = Path(__file__).parents[1]
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_KILLED), str(tmp_path / "c")],
        cwd=root,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert "survived" not in child.stdout
    left = [p.name for p in (tmp_path / "c").iterdir() if p.name.startswith("2")]
    assert left and left != ["2"]  # the torn step is there, under a temporary name
    with TrainCheckpoints(tmp_path / "c", every=1, keep=3) as checkpoints:
        assert checkpoints.latest() == 1
        state = checkpoints.restore(1, {"a": _struct(1000)})
        np.testing.assert_array_equal(state["a"], np.ones(1000, np.float32))
        assert checkpoints.save(2, {"a": jnp.full(1000, 3.0)})
        assert checkpoints.latest() == 2
    assert sorted(p.name for p in (tmp_path / "c").iterdir() if p.is_dir()) == ["1", "2"]


def test_saving_prints_nothing(tmp_path):
    script = textwrap.dedent("""
        import sys
        import absl.logging
        import numpy as np
        absl.logging.set_verbosity("info")
        from recapture_jax.checkpoints import TrainCheckpoints, save_tree
        save_tree(sys.argv[1] + "/t", {"a": np.zeros(3, np.float32)})
        with TrainCheckpoints(sys.argv[1] + "/c", every=1, keep=1) as checkpoints:
            checkpoints.save(1, {"a": np.zeros(3, np.float32)})
        absl.logging.info("mine is still heard")
    """)
    child = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout == ""
    assert child.stderr.strip().endswith("mine is still heard")
    assert len(child.stderr.strip().splitlines()) == 1
