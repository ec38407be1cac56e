"""The report of a study with the original's eight variants, written once."""

from types import SimpleNamespace

import pytest
from records import study

from jax_mnist.analysis import claims, report
from jax_mnist.analysis.study import Study


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    records = study(names=claims.ORIGINAL)
    command = "python scripts/study.py --seeds=3 --workdir='my <runs>'"
    report.write(records, folder, command, note="It is a <short> study.")
    return SimpleNamespace(folder=folder, study=Study(records), command=command)
