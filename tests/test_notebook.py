"""docs/guide/notebook.ipynb: its cells run one after the other, and find what they say."""

import json
import pathlib

NOTEBOOK = pathlib.Path(__file__).resolve().parents[1] / "docs" / "guide" / "notebook.ipynb"


def test_notebook(capsys):
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "outputs are not committed"
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
    assert names["found"].items[0][0]["name"] == names["paths"][0]
    assert names["file"].is_file() and 0 < names["match"].true_accept_rate <= 1
    assert 0 < len(names["unseen"]) < len(names["paths"])
