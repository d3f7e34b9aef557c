"""What others made runs no code here: each test has a file that tries, and a marker that it would leave."""
import os
import subprocess
import sys

import numpy as np
import pytest
from builders import ROOT, refused, table
from builders.corpora import make_recordings, speechlike
from builders.decoding import make_scores, run_k2
from builders.training_data import make_data

from essence_kd import UserError
from essence_kd.am.audio import NoiseMixer
from essence_kd.am.nnet3 import logits_rspecifier
from essence_kd.am.sources import load_cuts
from essence_kd.cli.main import main
from essence_kd.decode.decoders.kaldi_lattice import KaldiLatticeDecoder
from essence_kd.decode.options import DecodeOptions
from essence_kd.io.data_dir import DataDir
from essence_kd.io.parallel import run_jobs
from essence_kd.io.pipes import ALLOW_PIPES
from essence_kd.io.posterior import PosteriorTable, read_posteriors
from essence_kd.io.tables import IntVectorTable, MatrixTable, MatrixWriter, read_matrices, read_vectors
from essence_kd.io.wave import read_wav, speed_command, write_wav

PROCESS = [sys.executable, "-m", "essence_kd"]


@pytest.fixture
def no_pipes(monkeypatch):
    monkeypatch.setenv(ALLOW_PIPES, "false")


@pytest.fixture
def marker(tmp_path):
    """A file that is there when code has run."""
    made = tmp_path / "marker"
    yield made
    assert not made.exists()


def essence(*words, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "pytools"), "OMP_NUM_THREADS": "1", **more}
    done = subprocess.run([*PROCESS, *map(str, words)], env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done


# ---- pipes where they are refused

@pytest.mark.parametrize("ending", ["|", "|[0:1]", " | "])
@pytest.mark.parametrize("read", [
    lambda scp: list(read_matrices(f"scp:{scp}")), lambda scp: list(read_vectors(f"scp:{scp}")),
    lambda scp: list(read_posteriors(f"scp:{scp}")), lambda scp: MatrixTable(str(scp)),
    lambda scp: IntVectorTable(str(scp)), lambda scp: PosteriorTable(str(scp)), load_cuts])
def test_pipes_of_an_scp_are_refused_by_line_and_id(tmp_path, marker, no_pipes, read, ending):
    table(MatrixWriter, tmp_path / "m", {"good": np.ones((3, 2), np.float32)})
    scp = tmp_path / "m.scp"
    scp.write_text(f"utt2 touch {marker}; cat {tmp_path}/m.ark {ending}\n" + scp.read_text())
    with pytest.raises(UserError) as error:
        read(scp)
    said = str(error.value)
    assert f"{scp}: line 1: utterance utt2: " in said and "--allow-pipes false" in said and f"touch {marker}" in said


@pytest.mark.parametrize("specifier", ["ark:touch {} |", "scp:touch {} |", "ark,s,cs:touch {} |", "ark:touch {}|"])
def test_pipes_of_an_rspecifier_are_refused(marker, no_pipes, specifier):
    with pytest.raises(UserError, match="--allow-pipes false"):
        list(read_matrices(specifier.format(marker)))


def test_pipes_of_a_wspecifier_are_refused(marker, no_pipes):
    with pytest.raises(UserError, match="--allow-pipes false"):
        MatrixWriter(f"ark:| touch {marker}")


def test_pipes_of_wav_scp_are_refused_by_line_and_id(tmp_path, marker, no_pipes):
    data = make_recordings(tmp_path)
    lines = (data / "wav.scp").read_text().splitlines()
    reco, place = lines[1].split()
    for source in (f"touch {marker}; cat {place} |", f"touch {marker}; cat {place} | sox -t wav - -t wav - speed 0.9 |",
                   f"touch {marker}; sox -t wav {place} -t wav - speed 0.9 |"):
        lines[1] = f"{reco} {source}"
        (data / "wav.scp").write_text("\n".join(lines) + "\n")
        for read in (DataDir.load, lambda path: NoiseMixer(path / "wav.scp", 1.0, (0.0, 1.0), 8000)):
            with pytest.raises(UserError) as error:
                read(data)
            assert f"wav.scp: line 2: recording {reco}: " in str(error.value) and "--allow-pipes" in str(error.value)
        with pytest.raises(UserError, match="--allow-pipes"):
            read_wav(source)


def test_speed_perturbation_is_no_pipe(tmp_path, no_pipes):
    write_wav(tmp_path / "a.wav", speechlike(1), 8000)
    twice = speed_command(speed_command(str(tmp_path / "a.wav"), "0.9"), "1.1")
    assert len(read_wav(speed_command(str(tmp_path / "a.wav"), "0.9"))[1]) == round(8000 / 0.9)
    assert len(read_wav(twice)[1]) == pytest.approx(8000 / 0.99, abs=1)
    (tmp_path / "wav.scp").write_text(f"r {twice}\n")
    NoiseMixer(tmp_path / "wav.scp", 1.0, (0.0, 1.0), 8000)


def _write_through_a_pipe(marker):
    MatrixWriter(f"ark:| touch {marker}").close()


def test_worker_processes_refuse_pipes(marker, monkeypatch):
    run_jobs(len, [("a",)])  # a fork server that has begun before
    monkeypatch.setenv(ALLOW_PIPES, "false")
    with pytest.raises(UserError, match="--allow-pipes false"):
        run_jobs(_write_through_a_pipe, [(marker,)])


def test_every_verb_has_the_option_and_the_variable(tmp_path, marker):
    table(MatrixWriter, tmp_path / "m", {"a": np.full((3, 4), 0.25, np.float32)})
    work = ["prune-post", "--top-k", 2, f"ark:touch {marker}; cat {tmp_path}/m.ark |", f"ark:{tmp_path}/out"]
    for done in (essence(*work, "--allow-pipes", "false"), essence(*work, **{ALLOW_PIPES: "false"})):
        assert done.returncode == 1 and "is not run: pipes are refused" in done.stderr
    done = essence(*work, "--allow-pipes", "true", **{ALLOW_PIPES: "0"})
    assert done.returncode == 0 and marker.exists(), done.stderr
    marker.unlink()
    done = essence(*work, **{ALLOW_PIPES: "0"})
    assert done.returncode == 1 and f"{ALLOW_PIPES} is '0': set it to true or false" in done.stderr


def test_make_feats_in_several_processes_refuses_pipes(tmp_path, marker):
    data = make_recordings(tmp_path)
    text = (data / "wav.scp").read_text().splitlines()
    reco, place = text[2].split()
    (data / "wav.scp").write_text("\n".join([*text[:2], f"{reco} touch {marker}; cat {place} |"]) + "\n")
    done = essence("make-feats", "--allow-pipes", "false", "--nj", 2, data)
    assert done.returncode == 1 and f"wav.scp: line 3: recording {reco}: " in done.stderr


@pytest.mark.parametrize("decoder", ["kaldi", "k2"])
def test_decoders_refuse_pipes(tmp_path, marker, request, decoder):
    corpus = make_scores(tmp_path)
    (tmp_path / "jobs").write_text(f"'ark:touch {marker}; cat {tmp_path}/scores.ark |' {tmp_path}/out\n")
    words = ["--allow-pipes", "false", "--jobs-file", tmp_path / "jobs", corpus.folder / "graph"]
    if decoder == "k2":
        done = run_k2(request.getfixturevalue("k2"), *words)
    else:
        done = essence("decode", "--decoder", decoder, "--nj", 2, *words)
    assert done.returncode == 1 and "pipes are refused" in done.stderr, done.stderr
    assert main(["decode", "--decoder", "kaldi", str(tmp_path / "graph"), f"scp:{tmp_path}/scores.scp",
                 str(tmp_path / "fine")]) == 0


def test_kaldis_own_programs_are_refused(tmp_path, no_pipes):
    data = make_data(tmp_path).data
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "final.mdl").write_text("")
    (tmp_path / "net" / "model.yaml").write_text("arch: nnet3\nnum_pdfs: 3\nframe_subsampling_factor: 3\n")
    refused(lambda: logits_rspecifier(tmp_path / "net", data / "feats.scp"), "--allow-pipes false")
    refused(lambda: KaldiLatticeDecoder(tmp_path, DecodeOptions()), "--allow-pipes false")
