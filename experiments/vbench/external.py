"""Runs inside VBench's own environment, by its interpreter: `python external.py job.json`.

Imports nothing of this project. VBench pins packages that JAX of today cannot live with.
"""

import json
import pathlib
import sys


def main(job_path: str) -> None:
    from vbench import VBench

    job = json.loads(pathlib.Path(job_path).read_text())
    folder = pathlib.Path(job["folder"])
    custom = [d for d in job["dimensions"] if d != "object_class"]
    if custom:
        bench = VBench(job["device"], str(folder / "full_info.json"), str(folder / "results"))
        bench.evaluate(
            videos_path=str(folder / "videos"),
            name="custom",
            prompt_list=json.loads((folder / "prompts.json").read_text()),
            dimension_list=custom,
            mode="custom_input",
            local=job["local"],
        )
    if "object_class" in job["dimensions"]:  # custom input refuses it
        from vbench.object_class import compute_object_class
        from vbench.utils import init_submodules

        parts = init_submodules(["object_class"])["object_class"]
        found = compute_object_class(str(folder / "full_info.json"), job["device"], parts)
        (folder / "results").mkdir(exist_ok=True)
        path = folder / "results" / "object_eval_results.json"
        path.write_text(json.dumps({"object_class": found}))


if __name__ == "__main__":
    main(sys.argv[1])
