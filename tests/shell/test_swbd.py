"""The swbd recipe without a Kaldi: its check names everything that is missing, and its forecast adds up."""
from __future__ import annotations

import json
import re

import pytest
from builders import ROOT
from builders.switchboard import make_corpora

SCRIPTS = sorted((ROOT / "recipes" / "swbd").glob("*.sh"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_help_and_nonsense(shell, path):
    relative = path.relative_to(ROOT)
    done = shell(relative, "--help")
    assert done.returncode == 0 and f"Usage: {relative}" in done.stdout
    assert shell(relative, "--nope", "1").returncode == 2
    assert shell(relative, *["surplus"] * 9).returncode == 2


@pytest.fixture
def kaldi_root(tmp_path):
    """What the check looks for of Kaldi: scripts of s5c and sph2pipe; a dictionary patch of two lines."""
    root = tmp_path / "kaldi"
    local = root / "egs" / "swbd" / "s5c" / "local"
    local.mkdir(parents=True)
    for name in ("swbd1_data_download.sh", "swbd1_prepare_dict.sh", "swbd1_data_prep.sh", "swbd1_train_lms.sh",
                 "eval2000_data_prep.sh"):
        (local / name).write_text("")
    (local / "dict.patch").write_text("2c2\n< April ey p r ih l\n---\n> April ey p r ax l\n")
    tool = root / "tools" / "sph2pipe_v2.5" / "sph2pipe"
    tool.parent.mkdir(parents=True)
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    return root


def test_everything_that_is_missing_is_named_at_once(shell, tmp_path):
    env = {"KALDI_ROOT": "", "LDC97S62": str(tmp_path / "a b"), "LDC2002S09": str(tmp_path / "s"),
           "LDC2002T43": str(tmp_path / "t"), "FISHER": str(tmp_path / "f"), "SWBD_LM": "nope",
           "LDC97S62_DOCS": str(tmp_path)}
    done = shell("recipes/swbd/check.sh", env=env)
    assert done.returncode == 1
    for name in ("KALDI_ROOT", "a b", "hub5e_00.pem", "hub5e00.english.000405.stm", "en20000405_hub5.glm",
                 "f/data/trans",
                 "'nope', neither srilm nor own", "conv.tab"):
        assert any(line.startswith("missing: ") and name in line for line in done.stderr.splitlines()), name
    assert "things are missing" in done.stderr
    assert re.search(r"\d things are missing", done.stderr)


def test_the_clusters_script_calls_run_sh(shell, tmp_path):
    done = shell("recipes/swbd/slurm/run.sh", "--check", "true", "--work-dir", tmp_path, env={"KALDI_ROOT": ""})
    assert done.returncode == 1 and "missing: KALDI_ROOT" in done.stderr and "GPU hours" in done.stdout


def test_made_up_corpora_pass_and_each_loss_is_named(shell, tmp_path, kaldi_root):
    env = make_corpora(tmp_path / "ldc", kaldi_root / "egs/swbd/s5c/local/dict.patch", conversations=2, utterances=2)
    env["KALDI_ROOT"] = str(kaldi_root)
    done = shell("recipes/swbd/check.sh", "--size", "made_up", env=env)
    ours = [line for line in done.stderr.splitlines() if "'python' on PATH" not in line and "'patch'" not in line]
    assert not [line for line in ours if line.startswith("missing")], done.stderr
    (kaldi_root / "tools" / "sph2pipe_v2.5" / "sph2pipe").unlink()
    for path in (tmp_path / "ldc" / "LDC97S62").rglob("*.sph"):
        path.unlink()
    (tmp_path / "ldc" / "LDC2002S09" / "hub5e_00" / "english" / "hub5e_00.pem").unlink()
    done = shell("recipes/swbd/check.sh", "--size", "made_up", env={**env, "SWBD_LM": "srilm"})
    assert done.returncode == 1
    for name in ("make -C", "there is no *.sph", "hub5e_00.pem", "SRILM's ngram-count"):
        assert name in done.stderr
    done = shell("recipes/swbd/prepare_data.sh", "--size", "made_up", tmp_path / "out", env=env)
    assert done.returncode == 1 and "missing: sph2pipe" in done.stderr and not (tmp_path / "out").exists()


def rows(table):
    """Disk, core hours and GPU hours of the forecast's lines."""
    found = [line.split()[-3:] for line in table.splitlines() if re.search(r"\d+ +\d+ +[\d.]+$", line)]
    return [[float(x) for x in row] for row in found]


@pytest.mark.parametrize("every", ["true", "false"])
def test_the_forecast_adds_up(shell, every):
    table = shell("recipes/swbd/check.sh", "--all-labels", every, env={"KALDI_ROOT": ""}).stdout
    numbers = rows(table)
    assert len(numbers) == 11
    for column in range(3):
        assert sum(row[column] for row in numbers[:-1]) == pytest.approx(numbers[-1][column], rel=0.02, abs=3)
    # all posteriors of 113 M rows and 8,800 pdfs, 4 bytes each
    assert (numbers[-1][0] > 3900) == (every == "true")


def test_the_forecast_takes_the_speed_that_was_measured(shell, tmp_path):
    def forecast(*options):
        return shell("recipes/swbd/check.sh", *options, env={"KALDI_ROOT": ""})

    assumed = forecast().stdout
    assert "GPU hours: at 10 TFLOP/s in training, assumed" in assumed
    # bench-train's own file; its speed in the place of this machine's
    words = ["bench-train", "--device", "cpu", "--repeats", "1", "--chunks", "1", "--pdfs", "40", "--top-k", "4",
             "--feat-dim", "8", "--set", "model.hidden=8", "--set", "model.cells=8", "--json", tmp_path / "rates.json"]
    assert shell("local/bin/essence", *words).returncode == 0
    told = json.loads((tmp_path / "rates.json").read_text())
    step = next(r for r in told["results"] if r["name"].startswith("essence"))
    assert told["tflops"] == step["tflops"] == pytest.approx(3e-6 * told["mflop_per_frame"] * step["frames_per_second"])
    done = forecast("--rates", tmp_path / "rates.json")
    assert f"CPU hours: at {told['tflops']:.3g} TFLOP/s in training, measured on CPU." in done.stdout
    (tmp_path / "rates.json").write_text(json.dumps({**told, "tflops": 40.0, "device": "A GPU 9000"}, indent=2))
    fast = forecast("--rates", tmp_path / "rates.json").stdout
    assert "GPU hours: at 40 TFLOP/s in training, measured on A GPU 9000." in fast
    assert rows(fast)[4][2] == pytest.approx(rows(assumed)[4][2] / 4, abs=0.06)
    for content in (None, "{}"):
        name = tmp_path / "none.json" if content is None else tmp_path / "rates.json"
        if content:
            name.write_text(content)
        done = forecast("--rates", name)
        assert done.returncode == 1 and "essence bench-train --json" in done.stderr and not rows(done.stdout)
    assert forecast("--gpu-tflops", "fast").returncode == 2


def test_the_forecast_knows_the_models():
    from essence_kd.am.models.acoustic_model import mflop_per_frame, num_params
    from essence_kd.am.models.registry import build_model
    from essence_kd.am.settings import TrainSettings
    from essence_kd.io.settings import load_settings

    def size(name):
        s = load_settings(TrainSettings, ROOT / "conf" / "models" / f"{name}.yaml")
        data = s.data
        assert (data.chunk_frames, data.left_context + data.right_context) == (300, 42)
        model = build_model(s.arch, s.model, feat_dim=40, num_pdfs=8800, frame_subsampling_factor=3)
        params = num_params(model)
        assert mflop_per_frame(model) * 1e6 == pytest.approx(2 * params / 3, rel=0.05)  # an operation pair a row
        return params, s.optim.epochs

    script = (ROOT / "recipes" / "swbd" / "check.sh").read_text()
    config = (ROOT / "recipes" / "swbd" / "recipe.conf").read_text()
    assert 'teachers="swbd_tdnn_lstm swbd_blstm swbd_cnn_tdnn" student=swbd_tdnn' in config
    teachers = [size(name) for name in ("swbd_tdnn_lstm", "swbd_blstm", "swbd_cnn_tdnn")]
    teacher, student = (float(re.search(rf"{name} = (\S+);? ?", script).group(1).rstrip(";"))
                        for name in ("teachers", "student"))
    assert sum(params for params, _ in teachers) == pytest.approx(teacher, rel=0.01)
    assert {epochs for _, epochs in teachers} == {6} and size("swbd_tdnn") == (pytest.approx(student, rel=0.01), 8)
