"""The notebook for students: its outputs are those of its cells, and it runs; bars and figures."""

import re

import nbformat
import pytest
import tour

import jax_mnist
from jax_mnist import runs

MACHINE = r"(?<![\w.])/(?:content|home|root|tmp|usr|work|Users)/|site-packages|[A-Z]:\\"

BARS = """
from jax_mnist.runs import display
with display.bar(2) as update:
    update(0, "gone")
    display.say("a line")
left = display.bar(2)
update = left.__enter__()
update(0, "epoch 1/2")
update(1, "epoch 2/2")
display.say("another line")
"""
FIGURE = """
import pandas as pd
from jax_mnist.analysis import figures
effects = pd.DataFrame({"mean": 1, "low": 0, "high": 2, "p": 0.01}, ["l2"])
figures.differences(effects, "bn")
"""


@pytest.fixture(scope="module")
def notebook():
    return tour.read()


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(notebook):
    return "\n".join(cell.source for cell in notebook.cells)


def assert_clean(notebook):
    """No output is an error, a warning or of this machine."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.get("name") != "stderr" and output.output_type != "error", output
            data = {"stream": output.get("text", ""), **output.get("data", {})}
            assert data.pop("text/plain", "") != "Output()", "a widget is shown only where it ran"
            data.pop("image/png", None)
            for value in data.values():
                assert not re.search(f"{MACHINE}|Warning|Traceback", value), value[:500]


def test_the_outputs_are_those_of_the_cells(notebook):
    hint = "run `python tests/tour.py --write`"
    assert notebook.metadata.sha256 == tour.digest(notebook), hint
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == [*range(1, 1 + len(counts))], hint


def test_no_output_is_an_error_a_warning_or_of_the_machine_that_made_it(notebook):
    nbformat.validate(notebook)
    assert_clean(notebook)
    assert tour.FILE.stat().st_size < 2**20
    pictures = [
        o for c in code_cells(notebook) for o in c.outputs if "image/png" in o.get("data", ())
    ]
    assert len(pictures) >= 9


def test_the_links_lead_to_files_and_the_address_is_that_of_the_project(notebook):
    for target in re.findall(r"\]\((?!http)(.*?)\)", text(notebook)):
        assert (tour.FILE.parent / target).exists(), target
    addresses = {address for _, address in tour.ADDRESS.findall(text(notebook))}
    assert addresses == {tour.REPOSITORY}


def test_the_notebook_and_the_answers_to_its_exercises_run(notebook, thorough, tmp_path):
    if not thorough:
        pytest.skip("takes minutes; use --thorough")
    again = nbformat.from_dict(notebook)
    answers = re.findall(r"^```python\n(.*?)^```$", text(notebook), re.DOTALL | re.MULTILINE)
    again.cells += [nbformat.v4.new_code_cell(answer) for answer in answers]
    tour.execute(again, tmp_path)
    assert_clean(again)
    assert len(answers) == 2 and all(cell.outputs for cell in again.cells[-2:])


def test_in_a_notebook_a_bar_is_one_line_that_goes_and_a_figure_shows_by_itself(tmp_path):
    cells = [nbformat.v4.new_code_cell(source) for source in (BARS, FIGURE)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    tour.execute(notebook, tmp_path)
    lines, bar = notebook.cells[0].outputs
    assert lines.text == "a line\nanother line\n"
    assert bar.data["text/plain"].startswith("epoch 2/2 \N{BOX DRAWINGS HEAVY HORIZONTAL}")
    assert "image/png" in notebook.cells[1].outputs[-1].data


@pytest.mark.parametrize("package", [jax_mnist, runs])
def test_dir_names_what_there_is(package):
    assert {*package.__all__} < {*dir(package)}
    for name in dir(package):
        getattr(package, name)
    assert "study" in dir(runs) and "runs" in dir(jax_mnist) and not hasattr(package, "nothing")
