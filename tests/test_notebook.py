"""The notebook runs from its first cell to its last in a real kernel, and shows what it promises."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "examine.ipynb"


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("GNOMON_CACHE", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = outputs(notebook)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [output["output_type"] for output in outputs(notebook)] == [output["output_type"] for output in kept], (
        "the outputs that the notebook is kept with are those that it makes"
    )
    text = "".join(output.get("text", "") for output in outputs(notebook))
    assert "What to do" in text
    assert "stability_limit = 10 loss / parameter²" in text
    assert "@inproceedings" in text
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))
