"""Eight CPU devices, and compiled programs shared between the processes of one test run."""

import os
import tempfile

import browser as browser_lib
import chex
import jax
import pytest
import tiny
from forked_scripts import ForkedScripts

chex.set_n_cpu_devices(8)
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name


def pytest_addoption(parser):
    parser.addoption(
        "--thorough", action="store_true", help="more kills and more generated configs"
    )


@pytest.fixture(autouse=True, scope="module")
def _let_programs_go():
    yield
    jax.clear_caches()  # they take gigabytes, and a process may map only so many


@pytest.fixture
def quickly_compiled():
    with tiny.compiled_quickly():
        yield


@pytest.fixture
def in_float64():
    """Two ways to compute the same, if only JAX's arrays are float64, agree to nine digits.

    This is a million times less precise than float64's rounding, on any processor.
    """
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def browser():
    with browser_lib.chromium() as started:
        yield started


@pytest.fixture(scope="session")
def scripts():
    """Runs scripts as a user would."""
    with ForkedScripts() as scripts:
        yield scripts


@pytest.fixture(scope="session")
def thorough(request):
    return request.config.getoption("--thorough")


def pytest_terminal_summary(terminalreporter):
    """Prints what tests have measured."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "measured":
                terminalreporter.write_line(value)
