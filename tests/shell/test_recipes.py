"""The recipes' preparation of data, as scripts: sizes, sources, and what is said without a network."""
import pytest
from builders.corpora import make_takes

from essence_kd.io.data_dir import DataDir, validate_data_dir


def test_mini(shell, tmp_path):
    run = shell("recipes/mini/prepare_data.sh", "--size", "tiny", "--nj", "2", tmp_path / "data")
    assert run.returncode == 0, run.stderr
    seconds = validate_data_dir(tmp_path / "data" / "train")["seconds"]
    assert 5 * 60 < seconds < 9 * 60
    run = shell("recipes/mini/prepare_data.sh", "--size", "huge", tmp_path / "other")
    assert run.returncode == 1 and "there is no size 'huge'" in run.stderr
    run = shell("recipes/mini/prepare_data.sh")
    assert run.returncode == 2 and "Usage" in run.stderr


def test_fsdd(shell, tmp_path):
    make_takes(tmp_path / "recordings", ["ann", "bob", "eve"])
    run = shell("recipes/fsdd/prepare_data.sh", "--fsdd-dir", tmp_path / "recordings", "--heldout-speakers", "ann bob",
                "--size", "tiny", tmp_path / "data")
    assert run.returncode == 0, run.stderr
    assert set(DataDir.load(tmp_path / "data" / "eval_che").utt2spk.values()) == {"ann", "bob"}


@pytest.mark.git
def test_no_network_is_said_in_one_line(shell, tmp_path):
    """git is told to refuse the https protocol, which fails as a machine without a network does."""
    run = shell("recipes/fsdd/prepare_data.sh", tmp_path / "data", env={"GIT_ALLOW_PROTOCOL": "file"})
    assert run.returncode == 1
    assert "cannot be cloned (no network?)" in run.stderr and "--fsdd-dir" in run.stderr
    assert not list((tmp_path / "data" / "download").iterdir())


def test_what_was_cloned_is_not_cloned_again(shell, tmp_path):
    clone = tmp_path / "data" / "fsdd_tiny" / "download" / "free-spoken-digit-dataset"
    make_takes(clone / "recordings", ["ann", "bob", "eve"])
    for speaker in ("ann", "bob"):
        run = shell("./run.sh", "--work-dir", tmp_path, "--corpus", "fsdd", "--size", "tiny", "--stop-stage", "0",
                    "--heldout-speakers", speaker, env={"GIT_ALLOW_PROTOCOL": "file"})
        assert run.returncode == 0, run.stderr
        assert set(DataDir.load(tmp_path / "data" / "fsdd_tiny" / "eval_che").utt2spk.values()) == {speaker}
