"""What README.md and docs/ show is true: snippets run, commands parse, links and files exist."""

import argparse
import importlib.util
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import jax
import modules
import numpy as np
import pytest
from absl import app

from jax_mnist import config
from jax_mnist.nn import cnn

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LAYER_TABLE = cnn.layer_table(cnn.CNN())
SMALL_NETWORK = (
    cnn.Layer(3, 4, cnn.RELU_NORM),
    cnn.Layer(3, 4, (*cnn.RELU_NORM, "max-pool 2x2")),
    cnn.Layer(1, 4, (*cnn.NORM_RELU, "max-pool 2x2")),
    cnn.Layer(3, 4, (*cnn.RELU_NORM, "average-pool 4x4")),
    cnn.Layer(1, 10, ()),
)
TINY = "--config.epochs=1 --config.batch_size=32 --config.train_split=train[:64]"
SMALLER = {  # a batch is a single ghost batch, which trains on a single device
    'split="train[:10000]"': 'split="train[:64]", validation_split="test[:64]", batch_size=32',
    "test[:1000]": "test[:64]",
}
OTHER_COMMANDS = ("tail -F ", "tensorboard --logdir ", "tar -xf docs/", "lint-imports")
OTHER_COMMANDS += ("git clone ", "python -m venv ")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def call(command, only_parse=False):
    """Runs a script in this process and in the current folder, or only parses its arguments."""
    parse_args = argparse.ArgumentParser.parse_args

    def run(main, flags_parser):
        rest = flags_parser(sys.argv)
        if not only_parse:
            main(rest)

    def parse_and_exit(parser):
        parse_args(parser)
        raise SystemExit(0)

    with modules.as_a_script() as patch:
        patch.setattr(app, "run", run)
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_exit)
        patch.setattr(sys, "argv", shlex.split(command))
        try:
            runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
        except SystemExit as end:
            assert not end.code, command


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory):
    """What the pages take for granted: configs, a finished run and its export, pictures.

    The run is of a smaller network that is compiled with little optimisation: these tests are of
    the pages, not of the network.
    """
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copytree(ROOT / "docs" / "study", folder / "docs" / "study")
    own = re.search(r"```python\n(from jax_mnist.config.*?)```", PAGES[0].read_text(), re.DOTALL)
    (folder / "configs" / "mine.py").write_text(own[1])
    shutil.copy(ROOT / "tests/inference/digits/0_pen_on_white.png", folder / "my_digit.png")
    np.save(folder / "my_digits.npy", np.zeros((3, 28, 28), np.uint8))
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(cnn, "LAYERS", SMALL_NETWORK)
        call(f"scripts/train.py gbn {TINY} --config.validation_split=test[:64]")
        for kind in ("jaxexport", "safetensors"):
            call(f"scripts/export.py runs/gbn --format={kind}")
        yield folder
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@each_page
def test_the_python_snippets_of_a_page_run_and_print_what_it_says(page, user_folder, capsys):
    names: dict = {}
    snippet = r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?"
    for code, output in re.findall(snippet, page.read_text(), re.DOTALL | re.MULTILINE):
        if "torch" in code and importlib.util.find_spec("torch") is None:
            continue
        for text, smaller in SMALLER.items():
            code = code.replace(text, smaller)
        capsys.readouterr()
        exec(compile(code, page.name, "exec"), names)
        if output:
            assert capsys.readouterr().out == output
    if "get_config" in names:
        config.check(names["get_config"]())


@each_page
def test_the_commands_of_a_page_parse(page, user_folder):
    commands = re.findall(r"^```bash\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    for line in "".join(commands).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        assert all(Path(word).exists() for word in words if word.startswith("configs/")), line
        match words:
            case ["python", script, *arguments] if "/" in script:
                call(shlex.join([script, *arguments]), only_parse=True)
            case ["python", "-m", "pip", "install", "-e", what]:
                assert what == "." or what[2:-1] in PROJECT["optional-dependencies"], line
            case ["python", "-m", "pytest" as tool] | [("ruff" | "mypy") as tool, *_]:
                assert tool in PROJECT["optional-dependencies"]["test"], line
            case ["bash", script, *_]:
                assert (ROOT / script).exists(), line
            case _:
                assert line.startswith(OTHER_COMMANDS), f"no test knows {line!r}"


@each_page
def test_the_links_and_files_that_a_page_names_exist(page, user_folder):
    text = page.read_text()
    for target in re.findall(r"\]\((?!http)(.*?)\)", text):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if anchor else ()
        anchors = [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]
        assert not anchor or anchor in anchors, target
    for name in re.findall(
        r"`((?:jax_mnist|scripts|benchmarks|configs|tests|docs)/[\w/.]*)`", text
    ):
        assert (ROOT / name).exists() or (user_folder / name).exists(), name


@each_page
def test_every_snippet_of_a_page_is_of_a_kind_that_is_tested(page):
    fences = re.findall(r"^ *```(\w*)$", page.read_text(), re.MULTILINE)
    assert set(fences[::2]) <= {"python", "bash", "text"} and set(fences[1::2]) <= {""}


def test_the_pages_agree_with_the_program():
    assert LAYER_TABLE in (ROOT / "docs" / "results.md").read_text()
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert len(PAGES[0].read_text().splitlines()) <= 130
