"""What a run has measured so far: one JSON line per scene, sample and row; a killed run goes on."""

import json
import pathlib
from collections.abc import Iterable

from recapture_jax.errors import InputError


class Records:
    """The records of a folder, which belong to one set of settings.

    Args:
        folder: made if needed.
        settings: JSON-able; what every record of the folder has in common.

    Raises:
        InputError: the folder's records were made with other settings.
    """

    def __init__(self, folder: pathlib.Path, settings: dict):
        folder.mkdir(parents=True, exist_ok=True)
        self._path, stored = folder / "records.jsonl", folder / "settings.json"
        text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
        if stored.exists() and stored.read_text() != text:
            old = json.loads(stored.read_text())
            names = [n for n in sorted(old | settings) if old.get(n) != settings.get(n)]
            raise InputError(
                f"{folder} holds records made with another {', '.join(names)}: choose another --out "
                "or remove it"
            )
        stored.write_text(text)
        self.lines = list(self._read())
        self._done = {(r["scene"], r["sample"], r["row"]) for r in self.lines}

    def _read(self) -> Iterable[dict]:
        if not self._path.exists():
            return
        text = self._path.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # killed while writing
            self._path.write_text(whole)
        for line in whole.splitlines():
            yield json.loads(line)

    def has(self, scene: str, sample: str, row: str) -> bool:
        """Whether this has been measured."""
        return (scene, sample, row) in self._done

    def add(self, record: dict) -> None:
        """Appends a record with keys scene, sample and row; nan is written as null."""
        line = json.dumps(_plain(record))
        with self._path.open("a") as file:
            file.write(line + "\n")
        self.lines.append(json.loads(line))
        self._done.add((record["scene"], record["sample"], record["row"]))


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return None if value != value else round(value, 6)
    return value
