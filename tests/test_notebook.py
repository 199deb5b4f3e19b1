"""The notebook, run cell by cell as Jupyter does."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).parents[1] / "notebooks" / "recapture.ipynb"
SMALLEST = {"MODEL": "smoke", "MORE_MOVES": ["pan left 3"]}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after its cells, with `SMALLEST` put behind its parameters, and where it ran."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    tagged = [i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", ())]
    assert len(tagged) == 1
    assert all(f"\n{name} = " in notebook.cells[tagged[0]].source for name in SMALLEST)
    override = "\n".join(f"{name} = {value!r}" for name, value in SMALLEST.items())
    notebook.cells.insert(tagged[0] + 1, nbformat.v4.new_code_cell(override))
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": folder}}).execute()
    return {cell.id: cell for cell in notebook.cells}, folder


def shown(cell) -> set[str]:
    """The kinds of data a cell shows."""
    return {kind for output in cell.outputs for kind in output.get("data", ())}


def test_it_shows_the_preview_and_films_every_move(executed):
    cells, folder = executed
    assert "image/png" in shown(cells["preview"]) and "image/png" in shown(cells["keyframes"])
    for name in ("film", "further"):
        (output,) = [o for o in cells[name].outputs if "data" in o]
        assert "data:video/mp4;base64," in output["data"]["text/html"]
    made = sorted(p.parent.name for p in folder.glob("outputs/*/result.mp4"))
    assert len(made) == 2 and "orbit" in made[0] and "pan" in made[1]
    printed = "".join(o.text for o in cells["further"].outputs if o.output_type == "stream")
    assert "'depth': 'cached'" in printed and "'spatial': 'cached'" in printed
    listed = "".join(o.text for o in cells["files"].outputs if o.output_type == "stream")
    assert "result.mp4" in listed and "temporal.safetensors" in listed


def test_it_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)
