"""What a run is, and whose its folder is."""

import json

import pytest
from filelock import FileLock
from tiny import config

from jax_mnist import config as config_lib
from jax_mnist.config import ConfigError
from jax_mnist.runs import folder
from jax_mnist.runs.folder import Run, exclusive


def begin(runs):
    for run in runs:
        with exclusive(run):
            pass


def test_a_folder_of_an_older_version_is_the_same_run_if_nothing_else_changed(tmp_path):
    run = Run("old", config_lib.base(), tmp_path)
    older = run.config.to_dict() | {"width": 1, "optimizer": "sgd", "teacher": ""}  # gone since
    del older["schedule"]  # as if it were new
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert not folder.is_finished(run)
    run.config.schedule = "constant"
    with pytest.raises(ConfigError, match="schedule is 'one_cycle' there, 'constant' here"):
        folder.is_finished(run)
    (tmp_path / "config.json").write_text(json.dumps(older | {"optimizer": "muon"}))
    with pytest.raises(ConfigError, match="optimizer is 'muon' there, None here"):
        folder.is_finished(run)


def test_fields_without_effect_do_not_make_another_run(tmp_path):
    begin([Run("x", config(), tmp_path)])
    begin([Run("x", config(data_devices=2, tensorboard=True), tmp_path)])


@pytest.mark.parametrize("text", ["null", "{", "[" * 100_000])
def test_a_damaged_config_file_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json is damaged: remove it"):
        folder.is_finished(Run("x", config(), tmp_path))


def test_a_strange_value_in_a_folder_is_a_difference_like_any(tmp_path):
    known = config().to_dict() | {"seed": [0], "l2": {"x": 1}, "norm": "x" * 1000}
    (tmp_path / "config.json").write_text(json.dumps(known))
    with pytest.raises(ConfigError, match=r"seed is \[0\] there, 0 here") as error:
        folder.is_finished(Run("x", config(), tmp_path))
    assert len(str(error.value)) < 400


def test_one_seed_and_several_do_not_share_a_folder(tmp_path):
    for first, second, content in ((1, 2, "a run of one seed"), (2, 1, "runs of several seeds")):
        begin(folder.replicas("small", config(replicas=first), tmp_path / f"{first}"))
        with pytest.raises(ConfigError, match=f"holds {content}"):
            folder.replicas("small", config(replicas=second), tmp_path / f"{first}")


@pytest.mark.parametrize("name", ["x" * 65, "a/b"])
def test_a_name_that_no_folder_can_have_is_refused(name):
    with pytest.raises(ConfigError, match="must have 1 to 64 printable characters and no slash"):
        folder.check_name(name)


def test_only_files_that_a_killed_run_left_half_written_are_removed(tmp_path):
    own = ("a", ".history.pkl.x.tmp", ".own.12.tmp", "history.pkl.1.tmp", "checkpoints/.5.msgpack")
    left = (".history.pkl.12.tmp", "checkpoints/.5.msgpack.12.tmp")
    (tmp_path / "checkpoints").mkdir()
    for name in (*own, *left):
        (tmp_path / name).write_text("")
    with exclusive(Run("small", config(), tmp_path)):
        files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {*own, "config.json", ".lock"}


def test_a_folder_that_another_process_trains_in_is_refused(tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(ConfigError, match="in use: another process"):
        begin([Run("run", config(), tmp_path)])
    assert not (tmp_path / "config.json").exists()


def test_a_run_that_another_process_began_meanwhile_is_not_written_over(tmp_path):
    first, second = (Run("x", config(l2=l2), tmp_path / "run") for l2 in (0.1, 0.2))
    assert not folder.is_finished(second)
    begin([first])
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(ConfigError, match=r"l2 is 0\.1 there, 0\.2 here"):
        begin([second])
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_folder_moved_aside_while_it_was_taken_is_not_written_in(tmp_path, monkeypatch):
    run = Run("small", config(), tmp_path / "small")

    def move_then_lock(path, timeout):
        run.workdir.rename(tmp_path / "aside")
        run.workdir.mkdir()
        return FileLock(path, timeout=timeout)

    monkeypatch.setattr(folder, "FileLock", move_then_lock)
    with pytest.raises(ConfigError, match="in use"):
        begin([run])
    assert not list(tmp_path.rglob("*.json"))


def test_a_run_that_is_being_trained_is_not_moved_aside(tmp_path):
    workdir = tmp_path / "small"
    runs = folder.replicas("small", config(replicas=2), workdir)
    begin(runs)
    with exclusive(runs[-1]), pytest.raises(ConfigError, match="is in use: another process"):
        folder.move_aside(workdir)
    assert folder.move_aside(workdir) == tmp_path / "small.old-1"
    begin(runs)
    assert folder.move_aside(workdir) == tmp_path / "small.old-2"


def test_only_a_run_is_moved_aside(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("")
    with pytest.raises(ConfigError, match="thesis holds no run, so it is not moved"):
        folder.move_aside(tmp_path / "thesis")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]
    assert folder.move_aside(tmp_path / "none") is None


def test_seeds_that_were_moved_aside_are_no_replicas(tmp_path):
    begin(folder.replicas("small", config(replicas=2), tmp_path))
    (tmp_path / "seed-0").rename(tmp_path / "seed-0.old-1")
    assert folder.seed_folders(tmp_path, "config.json") == [tmp_path / "seed-1"]
