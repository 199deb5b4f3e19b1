"""Trees of arrays on disk (Orbax): saved once and whole, restored against known shapes only."""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from recapture_jax import processes, storage
from recapture_jax.errors import InputError

_LISTED = 6  # names shown per kind of mismatch, so that a message stays one readable line


def _drop_orbax_chatter(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or "orbax" not in record.pathname


def _quiet() -> None:
    """Hides what Orbax says below ERROR: several lines per save would bury a CLI's own output.

    Orbax logs through absl, which other code may use as well, hence a filter and not a level.
    """
    logging.getLogger("absl").addFilter(_drop_orbax_chatter)  # adding it twice adds it once


def _checkpointer() -> ocp.Checkpointer:
    # Float weights hardly compress (12 %), and doing so doubles the memory a save needs.
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))


def _by_name(tree: Any) -> dict[str, Any]:
    """Leaves by 'a/b/c'; dict keys, attributes and positions are spelled alike, as Orbax does."""
    names = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        parts = [getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path]
        names["/".join(str(part) for part in parts)] = leaf
    return names


def _kind(dtype: Any) -> str:
    for kind in (jax.numpy.floating, jax.numpy.integer, jax.numpy.bool_):
        if jax.numpy.issubdtype(dtype, kind):
            return kind.__name__
    return str(dtype)


def _check(where: Path, stored: Any, expected: Any) -> None:
    """Raises one InputError listing what the checkpoint has too much (+), lacks (-) or differs."""
    stored, expected = _by_name(stored), _by_name(expected)
    extra = [f"+{name} {tuple(stored[name].shape)}" for name in stored if name not in expected]
    absent = [f"-{name} {tuple(expected[name].shape)}" for name in expected if name not in stored]
    differs = []
    for name in stored.keys() & expected.keys():
        have, want = stored[name], expected[name]
        if tuple(have.shape) != tuple(want.shape):
            differs.append(f"{name} {tuple(have.shape)} is not {tuple(want.shape)}")
        elif _kind(have.dtype) != _kind(want.dtype):
            differs.append(f"{name} {have.dtype} is not {want.dtype}")
    if not (extra or absent or differs):
        return
    lines = []
    for group in (extra, absent, differs):
        lines += sorted(group)[:_LISTED]
        if len(group) > _LISTED:
            lines.append(f"... {len(group) - _LISTED} more")
    raise InputError(
        f"checkpoint {where} does not fit the expected tree "
        f"(+ only in the checkpoint, - missing in it): {'; '.join(lines)}; "
        "use the checkpoint of this model and configuration"
    )


def _placed(abstract_tree: Any) -> Any:
    """Leaves as ShapeDtypeStruct with a sharding: what Orbax needs to place the arrays itself."""
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None) or default
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, abstract_tree)


def _args(abstract_tree: Any, on_host: bool = False) -> ocp.args.PyTreeRestore:
    placed = _placed(abstract_tree)
    if on_host:
        restore_args = jax.tree.map(
            lambda x: ocp.RestoreArgs(restore_type=np.ndarray, dtype=x.dtype), abstract_tree
        )
    else:
        restore_args = ocp.checkpoint_utils.construct_restore_args(placed)
    return ocp.args.PyTreeRestore(item=placed, restore_args=restore_args)


def save_tree(path: str | Path, tree: Any) -> None:
    """Writes a tree of numpy or JAX arrays as the folder `path`; it appears whole or not at all.

    Args:
        path: a folder that does not exist yet; missing parents are created.
        tree: nested dicts (or optimizer states) of arrays, any dtype JAX has.

    Raises:
        InputError: `path` exists, or the tree has no leaves.
    """
    _quiet()
    path = Path(path).absolute()
    if path.exists():
        raise InputError(f"{path} exists already; choose a new folder or remove it first")
    if not jax.tree.leaves(tree):
        raise InputError(f"nothing to save in {path}: the tree has no arrays")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _checkpointer() as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))


def restore_tree(path: str | Path, abstract_tree: Any, on_host: bool = False) -> Any:
    """Reads a tree saved by save_tree, placed and typed as `abstract_tree` says.

    Args:
        path: the folder written by save_tree.
        abstract_tree: jax.ShapeDtypeStruct leaves (or arrays) in the structure to return. A leaf
            with a `sharding` is loaded straight into it, others go to the first local device.
            Floats are cast to the requested float dtype; other kinds must agree.
        on_host: no device is touched, whatever the leaves say.

    Returns:
        The same structure with jax.Array leaves; numpy's if `on_host`.

    Raises:
        InputError: no checkpoint there or an unreadable one; names, shapes or kinds of dtype
            differ (listed with + and -).
    """
    _quiet()
    path = Path(path).absolute()
    if not (path / "_METADATA").is_file():
        raise InputError(f"no checkpoint at {path}; expected a folder written by save_tree")
    with _checkpointer() as checkpointer:
        try:
            stored = checkpointer.metadata(path).item_metadata.tree
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise _damaged(path, error) from error
        _check(path, stored, abstract_tree)
        try:
            return checkpointer.restore(path, args=_args(abstract_tree, on_host))
        except (ValueError, KeyError, OSError) as error:
            raise _damaged(path, error) from error


def restore_safetensors(path: str | Path, abstract_tree: Any) -> Any:
    """Reads one safetensors file whose names are the tree's '/'-joined paths.

    Args:
        path: the file.
        abstract_tree: as for `restore_tree`; dtypes of floats may differ.

    Returns:
        The same structure with numpy leaves in the dtypes of the file.

    Raises:
        InputError: the file is missing or damaged, or names or shapes differ (listed with + and -).
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}); restore the file") from None
    _check(Path(path), stored, abstract_tree)
    names = list(_by_name(abstract_tree))
    return jax.tree.unflatten(jax.tree.structure(abstract_tree), [stored[name] for name in names])


def _damaged(path: Path, error: Exception) -> InputError:
    reason = str(error)[:200]
    return InputError(f"checkpoint {path} is damaged ({reason}); write it again")


class TrainCheckpoints:
    """The last few states of a training run: one folder per step, complete or ignored.

    Saves are synchronous, so that after `save` returns the step survives `kill -9`; a save that
    was interrupted leaves only a temporary folder, which is never listed and is removed by the
    next run. Use as a context manager, or call close(). In a run of several processes all of them call
    every method, process 0 alone reads and writes.

    Args:
        directory: on disk; created if missing.
        every: steps between saves, >= 1; `save` is a no-op at other steps.
        keep: how many of the newest steps stay on disk, >= 1.
        mirror: a folder in a bucket that gets a copy of every save; where the directory has no step
            yet, its newest one is fetched.

    Raises:
        InputError: `every` or `keep` below 1, or `directory` is a file.
    """

    def __init__(
        self,
        directory: str | Path,
        every: int,
        keep: int,
        mirror: storage.Folder | None = None,
    ):
        if every < 1 or keep < 1:
            raise InputError(f"checkpoints need every >= 1 and keep >= 1, got {every} and {keep}")
        self._directory = Path(directory).absolute()
        if self._directory.exists() and not self._directory.is_dir():
            raise InputError(f"{self._directory} is a file; checkpoints need a folder")
        _quiet()
        self._every, self._mirror = every, mirror
        self._manager = None
        if not processes.is_main():
            return
        if mirror is not None and not self._directory.exists():
            self._fetch(mirror)
        self._directory.mkdir(parents=True, exist_ok=True)
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="process0"
        )
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=False,  # which Orbax refuses to a part of the processes
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
                multiprocessing_options=alone,
            ),
            item_handlers=ocp.PyTreeCheckpointHandler(
                use_compression=False, multiprocessing_options=alone
            ),
        )

    def _fetch(self, mirror: storage.Folder) -> None:
        stored = list(mirror.iterdir()) if mirror.exists() else []
        for step in sorted(stored, key=lambda p: int(p.name), reverse=True):
            if storage.download(step, self._directory / step.name):
                return

    def save(self, step: int, state: Any, force: bool = False) -> bool:
        """Writes `state` as `step` if it is a multiple of `every` or `force`; True if written.

        A step that is on disk already is left as it is: a resumed run recomputes the same state.
        """
        if self._manager is None or (not force and step % self._every):
            return False
        if step in self._manager.all_steps():
            return False
        written = self._manager.save(
            step, args=ocp.args.PyTreeSave(jax.device_get(state)), force=True
        )
        if self._mirror is not None:
            storage.upload(self._directory / str(step), self._mirror / str(step))
            kept = {str(s) for s in self._manager.all_steps()}
            for old in self._mirror.iterdir():
                if old.name not in kept:
                    old.rmtree()
        return written

    def latest(self) -> int | None:
        """The newest complete step, None if there is none."""
        return processes.agreed(self._manager and self._manager.latest_step())

    def restore(self, step: int, abstract_state: Any) -> Any:
        """The state of `step` as abstract_state's structure; see restore_tree for its leaves.

        In a run of several processes the leaves are numpy arrays.

        Raises:
            InputError: no such step, or the stored state does not fit.
        """
        if jax.process_count() == 1:
            return self._restore(step, abstract_state)
        like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_state)
        host = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), abstract_state)
        return processes.same(self._restore(step, host) if self._manager else like)

    def _restore(self, step: int, abstract_state: Any) -> Any:
        where = self._directory / str(step)
        steps = self._manager.all_steps()
        if step not in steps:
            have = ", ".join(str(s) for s in sorted(steps)) or "none"
            raise InputError(f"no checkpoint of step {step} in {self._directory}; present: {have}")
        try:
            stored = self._manager.item_metadata(step).tree
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise _damaged(where, error) from error
        _check(where, stored, abstract_state)
        try:
            return self._manager.restore(step, args=_args(abstract_state))
        except (ValueError, KeyError, OSError) as error:
            raise _damaged(where, error) from error

    def close(self) -> None:
        if self._manager is not None:
            self._manager.close()

    def __enter__(self) -> "TrainCheckpoints":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def abstract_like(tree: Any) -> Any:
    """The ShapeDtypeStruct tree of a tree of arrays, shardings kept where the leaves have one."""

    def leaf(x: Any) -> jax.ShapeDtypeStruct:
        dtype = getattr(x, "dtype", None) or np.asarray(x).dtype
        return jax.ShapeDtypeStruct(np.shape(x), dtype, sharding=getattr(x, "sharding", None))

    return jax.tree.map(leaf, tree)
