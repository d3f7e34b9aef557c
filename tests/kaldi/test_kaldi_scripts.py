"""Kaldi's scripts on the data directories and the lang that this project writes."""
import os
import subprocess
from pathlib import Path

import pytest
from builders.corpora import make_mini, make_recordings
from builders.graphs import make_dict

from essence_kd.corpus.features import compute_cmvn, make_feats, perturb_speed
from essence_kd.corpus.synth import SETS
from essence_kd.hmm import fst as F
from essence_kd.hmm import lang as L
from essence_kd.io.errors import UserError

KALDI = Path(os.environ["KALDI_ROOT"])
pytestmark = pytest.mark.kaldi("egs/wsj/s5/utils")


def test_speed_perturbation_is_valid_and_named_the_same(tmp_path):
    data = make_recordings(tmp_path)
    perturb_speed(data, tmp_path / "sp")
    for place in (data, tmp_path / "sp"):
        make_feats(place)
        compute_cmvn(place)
    work = tmp_path / "recipe"
    work.mkdir()
    (work / "utils").symlink_to(KALDI / "egs/wsj/s5/utils")
    (work / "path.sh").write_text("")
    for place in ("data", "sp", "data_hires", "sp_hires"):
        run = subprocess.run(["utils/validate_data_dir.sh", tmp_path / place], cwd=work, capture_output=True, text=True)
        assert "Successfully validated" in run.stdout, run.stdout + run.stderr
    (data / "reco2dur").write_text(
        "call0-A 4.0\ncall1-A 4.0\ncall2-A 4.0\n"
    )  # or the script would need Kaldi's binaries
    script = work / "utils" / "perturb_data_dir_speed.sh"
    subprocess.run([script, "0.9", data, tmp_path / "theirs"], cwd=work, capture_output=True)
    for name in ("wav.scp", "segments", "text", "utt2spk", "spk2gender", "reco2file_and_channel", "utt2uniq"):
        ours = [line for line in (tmp_path / "sp" / name).read_text().splitlines() if line.startswith("sp0.9-")]
        theirs = (tmp_path / "theirs" / name).read_text().splitlines()
        assert [line.split() for line in ours] == [line.split() for line in theirs], name


def test_the_corpus_mini_is_valid(tmp_path):
    out = tmp_path / "mini"
    make_mini(out)
    (tmp_path / "utils").symlink_to(KALDI / "egs/wsj/s5/utils")
    (tmp_path / "path.sh").write_text("")
    for name in SETS:
        run = subprocess.run(
            ["utils/validate_data_dir.sh", "--no-feats", out / name], cwd=tmp_path, capture_output=True, text=True
        )
        assert "Successfully validated" in run.stdout, run.stdout + run.stderr
    run = subprocess.run(["utils/validate_dict_dir.pl", out / "dict"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0 and "SUCCESS" in run.stdout, run.stdout + run.stderr


@pytest.mark.parametrize("changes, fine", [
    ({"lexicon.txt": "#metoo AX\n# D\n- AX\na(2) D AX\n<unk> SPN\n"}, True),
    *(({"lexicon.txt": f"{word} AX\n"}, False) for word in ("<s>", "</s>", "<eps>", "#0", "10\xa0km", "a\u3000b")),
    *(({"nonsilence_phones.txt": f"AX\n{phone}\n", "lexicon.txt": "a AX\n", "extra_questions.txt": None},
       phone == "T_Z")
      for phone in ("#1", "#x", "<eps>", "T_S", "T_B", "T_I", "T_E", "T_Z", "SIL"))])
def test_what_a_dict_may_not_have(tmp_path, changes, fine):
    make_dict(tmp_path / "dict", **changes)
    run = subprocess.run(["perl", KALDI / "egs/wsj/s5/utils/validate_dict_dir.pl", tmp_path / "dict"], cwd=tmp_path,
                         capture_output=True)
    assert (run.returncode == 0) == fine, run.stdout.decode()
    try:
        assert L.read_dict(tmp_path / "dict").lexicon and fine
    except UserError:
        assert not fine


@pytest.mark.kaldi("tools/openfst/bin/fstcompile")
def test_the_lang_is_that_of_prepare_lang(tmp_path):
    wsj = KALDI / "egs/wsj/s5"
    (tmp_path / "work").mkdir()
    for name in ("utils", "steps"):
        (tmp_path / "work" / name).symlink_to(wsj / name)
    (tmp_path / "work" / "path.sh").write_text((wsj / "path.sh").read_text().replace("`pwd`/../../..", str(KALDI)))
    ours = L.prepare_lang(make_dict(tmp_path / "dict"), tmp_path / "lang").path
    theirs = tmp_path / "kaldi"
    command = f". ./path.sh; utils/prepare_lang.sh --num-sil-states 5 {tmp_path}/dict '<unk>' {tmp_path}/tmp {theirs}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path / "work", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for path in sorted(theirs.rglob("*")):
        if path.is_file() and path.suffix != ".fst":
            texts = [(folder / path.relative_to(theirs)).read_text().splitlines() for folder in (ours, theirs)]
            assert [line.rstrip() for line in texts[0]] == [line.rstrip() for line in texts[1]], path.name
    for name in ("L.fst", "L_disambig.fst"):
        a, b = F.read_fst(ours / name), F.read_fst(theirs / name)
        rows = [sorted(zip(x.src, x.dst, x.ilabel, x.olabel, x.weight.round(4))) for x in (a, b)]
        assert rows[0] == rows[1], name
