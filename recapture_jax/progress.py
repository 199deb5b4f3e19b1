"""Progress for people (bars with an ETA on stderr) and for programs (JSON lines)."""

import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

_silent = False


def silence() -> None:
    """From now on this process shows neither bars nor lines: another one does."""
    global _silent
    _silent = True


class Metrics:
    """Appends one JSON object per line to a file; a resumed run goes on in the same file."""

    def __init__(self, path: pathlib.Path | None):
        self._file = open(path, "a+", buffering=1) if path else None  # noqa: SIM115

    def resume(self, done: int) -> None:
        """Drops the records of steps after `done`, which will be made again, and a line that was cut off."""
        if not self._file:
            return
        self._file.seek(0)
        kept = [
            line for line in self._file if line.endswith("\n") and json.loads(line)["step"] <= done
        ]
        self._file.truncate(0)
        self._file.writelines(kept)

    def write(self, **record) -> None:
        if self._file:
            self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        if self._file:
            self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def bar(label: str, total: int, done: int = 0) -> tqdm:
    """A progress bar with rate and ETA; silent dots of it where stderr is no terminal."""
    quiet = not sys.stderr.isatty()
    return tqdm(
        desc=label,
        total=total,
        initial=done,
        unit="step",
        file=sys.stderr,
        disable=_silent,
        mininterval=10 if quiet else 0.2,
    )


def say(message: str) -> None:
    """One line for the person at the terminal."""
    if not _silent:
        tqdm.write(message, file=sys.stderr)


class Stopwatch:
    """Seconds per named stage, for run.json."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - begin
            self.seconds[name] = round(self.seconds.get(name, 0.0) + elapsed, 3)
