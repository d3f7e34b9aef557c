"""The recipes' preparation of data, as scripts: sizes, sources, and what is said without a network."""
import json
import re
import sys

import pytest
from builders.corpora import make_takes
from builders.libri import make_librispeech

from essence_kd.io.data_dir import DataDir, validate_data_dir
from essence_kd.io.wave import wav_info


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


def run_librispeech(shell, folder, tmp_path, *options, text=None):
    return shell("./run.sh", "--work-dir", tmp_path / "work", "--corpus", "librispeech", "--librispeech-dir", folder,
                 "--lm-text", text or folder / "lm" / "text", "--nj", "2", *options)


def test_librispeech_says_what_is_missing_and_what_it_takes(shell, tmp_path):
    folder = make_librispeech(tmp_path / "LibriSpeech")
    done = run_librispeech(shell, folder, tmp_path, "--check", "true", "--dev-speakers", "20")
    assert done.returncode == 0, done.stderr
    assert ("\ntrain: 12 utterances, 0.00 h\ndev: 4 utterances, 0.00 h\ntest_clean: 12 utterances, 0.00 h\n"
            in done.stdout)
    assert "three teachers and the twin" in done.stdout
    assert "recipes/librispeech/check.sh: nothing is missing" in done.stdout
    bare = tmp_path / "python"  # as before the set-up: Python and its own library
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    again = shell("recipes/librispeech/check.sh", "--librispeech-dir", folder, "--lm-text", folder / "lm" / "text",
                  "--dev-speakers", "20", env={"ESSENCE_PYTHON": str(bare)})
    assert again.returncode == 0 and "three teachers and the twin" in again.stdout, again.stderr
    third = shell("recipes/librispeech/check.sh", "--librispeech-dir", folder, "--lm-text", folder / "lm" / "text",
                  "--dev-speakers", "20", "--transcribed", "0.33")
    assert third.returncode == 0 and "lattices of the others" in third.stdout, third.stderr
    for size, counted, disk in (("clean-100", "28539 utterances, 100.60 h", r"7[0-9]\.\d"),
                                ("full-960", "281241 utterances, 960.90 h", r"7[0-9]{2}\.\d")):
        done = shell("recipes/librispeech/check.sh", "--librispeech-dir", folder, "--size", size)
        assert done.returncode == 1 and f"\ntrain: {counted}\n" in done.stdout  # as published
        assert re.search(rf"\n +together +{disk} ", done.stdout), done.stdout
        assert "lacks train-clean-100.tar.gz of openslr.org/12" in done.stderr
    done = shell("./run.sh", "--corpus", "librispeech", "--work-dir", tmp_path / "work")
    assert done.returncode == 1 and "name an unpacked LibriSpeech with --librispeech-dir" in done.stderr
    done = run_librispeech(shell, folder, tmp_path)  # no dev-clean, and none of the speakers of recipe.conf
    assert done.returncode == 1 and "lacks dev-clean-2.tar.gz of openslr.org/31 or dev-clean.tar.gz" in done.stderr
    assert not (tmp_path / "work").exists()


def test_librispeech_by_run_sh(shell, tmp_path):
    folder = make_librispeech(tmp_path / "LibriSpeech",
                              {"train-clean-5": ("10", "11", "12"), "test-clean": ("237", "61")})
    data = tmp_path / "work" / "data" / "librispeech_mini"
    done = run_librispeech(shell, folder, tmp_path, "--stop-stage", "0")  # speakers of recipe.conf
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: set(DataDir.load(data / name).utt2spk.values()) for name in ("dev", "test_clean")} == {
        "dev": {"237"}, "test_clean": {"61"}}
    plan = json.loads((tmp_path / "work" / "exp" / "librispeech_mini" / "plan.json").read_text())
    assert [plan[name] for name in ("sample_rate", "lm_order", "lm_prune", "rescore_lm_order")] == [16000, 2, 1e-6, 3]
    done = run_librispeech(shell, folder, tmp_path, "--stop-stage", "0", "--telephone", "true", "--transcribed", "0.5",
                           "--untranscribed", "true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert wav_info(str(data / "wav" / "train" / "10-100-0000.wav")).sample_rate == 8000
    assert (data / "untranscribed" / "wav.scp").exists() and not (data / "untranscribed" / "text").exists()
    done = run_librispeech(shell, folder, tmp_path, "--stop-stage", "0", "--untranscribed", "true")
    assert done.returncode == 2 and "names no untranscribed_sets" in done.stderr


def test_librispeech_for_kaldi(shell, tmp_path):
    folder = make_librispeech(tmp_path / "Libri Speech's")
    done = shell("recipes/librispeech/prepare_data.sh", "--librispeech-dir", folder, "--lm-text",
                 folder / "lm" / "text",
                 "--dev-speakers", "20", tmp_path / "data", env={"ESSENCE_ENGINE": "kaldi"})
    if done.returncode:  # neither flac nor sox
        assert "Kaldi reads FLAC by the program flac or sox, and neither is here" in done.stderr
    else:
        assert all(source.endswith(" |") for source in DataDir.load(tmp_path / "data" / "dev").wav_scp.values())
