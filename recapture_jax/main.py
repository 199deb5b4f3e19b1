"""Command line: `python -m recapture_jax.main --config=configs/orbit.py [--config.video.path=CLIP.mp4]`.

`python -m recapture_jax.config [VARIANT]` lists every field, its default and meaning.
Exit codes: 0 done, 1 a fault of ours, 2 bad input, 3 disk full, 130 interrupted (run again to go on).
"""

from recapture_jax import command


def _run(config):
    from recapture_jax import pipeline  # after the flags: a usage error should not wait for XLA

    return pipeline.run(config).folder / "result.mp4"


def cli() -> None:
    """Entry point of the `recapture` command."""
    command.run(_run)


if __name__ == "__main__":
    cli()
