"""Folders of clips in the form that VBench's custom input takes."""

import json
import pathlib
import shutil

from recapture_jax.errors import InputError

SUFFIXES = (".mp4", ".gif")


def clips(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Clips of a folder by name: its .mp4 and .gif files, or the result.mp4 of the runs in it.

    Raises:
        InputError: there are none.
    """
    folder = pathlib.Path(folder)
    found = {p.stem: p for p in sorted(folder.glob("*")) if p.suffix.lower() in SUFFIXES}
    if not found:
        found = {p.parent.name: p for p in sorted(folder.glob("*/result.mp4"))}
    if not found:
        raise InputError(
            f"{folder}: expected .mp4 or .gif clips, or folders of runs with result.mp4"
        )
    return found


def read_prompts(path: pathlib.Path) -> dict[str, dict[str, str]]:
    """{clip: {"prompt": text, "object": word or ""}}; a bare text stands for the prompt.

    Raises:
        InputError: not such a JSON file.
    """
    try:
        data = json.loads(pathlib.Path(path).read_text())
        entries = {k: {"prompt": v} if isinstance(v, str) else v for k, v in data.items()}
        return {
            k: {"prompt": str(v["prompt"]), "object": str(v.get("object", ""))}
            for k, v in entries.items()
        }
    except FileNotFoundError:
        raise InputError(f"{path}: no such file of prompts") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f'{path}: expected JSON {{"clip": "prompt"}} or {{"clip": {{"prompt": ..., "object": ...}}}}'
        ) from None


def export(
    found: dict[str, pathlib.Path], prompts: dict[str, dict[str, str]], folder: pathlib.Path
) -> dict[str, pathlib.Path]:
    """Copies clips to `folder/videos` and writes `prompts.json` and `full_info.json` beside it.

    The latter is VBench's list of prompts with the object of each clip, which Object Class reads.

    Returns:
        The copies by clip.

    Raises:
        InputError: a clip without a prompt.
    """
    if missing := sorted(found.keys() - prompts.keys()):
        raise InputError(f"no prompt for the clip {missing[0]!r}: add it to the file of prompts")
    videos = folder / "videos"
    shutil.rmtree(videos, ignore_errors=True)  # VBench scores whatever lies there
    videos.mkdir(parents=True)
    copies = {name: videos / f"{name}{path.suffix.lower()}" for name, path in found.items()}
    for name, path in found.items():
        shutil.copyfile(path, copies[name])
    by_file = {copies[n].name: prompts[n]["prompt"] for n in found}
    (folder / "prompts.json").write_text(json.dumps(by_file, indent=1) + "\n")
    info = [
        {
            "prompt_en": prompts[n]["prompt"],
            "dimension": ["object_class"],
            "video_list": [str(copies[n].absolute())],
            "auxiliary_info": {"object_class": {"object": prompts[n]["object"]}},
        }
        for n in found
        if prompts[n]["object"]
    ]
    (folder / "full_info.json").write_text(json.dumps(info, indent=1) + "\n")
    return copies
