"""What others made runs no code here: each test has a file that tries, and a marker that it would leave."""
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from builders import ROOT, plans, refused, table
from builders.corpora import make_recordings, speechlike
from builders.decoding import make_scores, run_k2
from builders.experiment import make_hostile_experiment, report
from builders.training_data import make_data

from essence_kd import UserError
from essence_kd.am.audio import NoiseMixer
from essence_kd.am.checkpoints import load_checkpoint
from essence_kd.am.models import read_model_yaml
from essence_kd.am.models.registry import build_model
from essence_kd.am.nnet3 import logits_rspecifier
from essence_kd.am.shards import ShardSource
from essence_kd.am.sources import load_cuts
from essence_kd.cli.main import main
from essence_kd.decode.decoders.kaldi_lattice import KaldiLatticeDecoder
from essence_kd.decode.options import DecodeOptions
from essence_kd.hmm.graph import load_graph
from essence_kd.io.data_dir import DataDir
from essence_kd.io.parallel import run_jobs
from essence_kd.io.pipes import ALLOW_PIPES
from essence_kd.io.lookup import read_values
from essence_kd.io.posterior import PosteriorTable, read_posteriors
from essence_kd.io.provenance import read_sidecar
from essence_kd.io.settings import read_yaml
from essence_kd.io.tables import IntVectorTable, MatrixTable, MatrixWriter, read_matrices, read_vectors
from essence_kd.io.wave import read_wav, speed_command, write_wav
from essence_kd.plan.plan import read_plan

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


# ---- checkpoints

class Payload:
    """What is pickled as a call of os.system."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Doubled(torch.nn.Module):
    def forward(self, x):
        return 2 * x


def _zipped(path, marker):
    torch.save({"model": Payload(marker)}, path)


def _pickled(path, marker):
    path.write_bytes(pickle.dumps(Payload(marker)))


def _legacy(path, marker):
    torch.save({"model": Payload(marker)}, path, _use_new_zipfile_serialization=False)


def _tarred(path, marker):
    """The oldest format of torch.save."""
    with tarfile.open(path, "w") as tar:
        for name in ("pickle", "storages", "tensors"):
            data = pickle.dumps(Payload(marker))
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _script(path, marker):
    torch.jit.script(Doubled()).save(str(path))


def _behind_a_zip(path, marker):
    """A pickle that a zip file ends."""
    with zipfile.ZipFile(path, "w") as parts:
        parts.writestr("archive/data.pkl", pickle.dumps({}))
    path.write_bytes(pickle.dumps(Payload(marker)) + path.read_bytes())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("make, for_torch", [(_zipped, True), (_pickled, False), (_legacy, False), (_tarred, False),
                                             (_script, False), (_behind_a_zip, False)])
def test_checkpoints_run_nothing(tmp_path, marker, monkeypatch, make, for_torch):
    """Also with the oldest PyTorch that may be installed, whose weights_only is safe for zip files of tensors alone."""
    make(tmp_path / "final.pt", marker)
    asked, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: asked.append(options) or load(*args, **options))
    refused(lambda: load_checkpoint(tmp_path / "final.pt"), tmp_path / "final.pt", "not a checkpoint")
    assert [options["weights_only"] for options in asked] == [True] * for_torch


def test_checkpoints_are_read(tmp_path):
    torch.save({"w": torch.arange(3)}, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt")["w"].tolist() == [0, 1, 2]
    with open(tmp_path / "b.pt", "wb") as stream:
        torch.save({"w": torch.arange(3)}, stream)
    assert load_checkpoint(tmp_path / "b.pt")["w"].tolist() == [0, 1, 2]


# ---- arrays, YAML, JSON

def test_npz_with_objects(tmp_path, marker):
    objects = np.empty(1, dtype=object)
    objects[0] = Payload(marker)
    np.savez(tmp_path / "graph.npz", **dict.fromkeys(("src", "dst", "meta", "words", "arcs"), objects))
    refused(lambda: load_graph(tmp_path / "graph.npz"), tmp_path / "graph.npz")
    (tmp_path / "pickled.npz").write_bytes(pickle.dumps(Payload(marker)))
    refused(lambda: load_graph(tmp_path / "pickled.npz"), tmp_path / "pickled.npz")


@pytest.mark.parametrize("tag", [
    "!!python/object/apply:os.system [touch {}]", "!!python/object/new:os.system [touch {}]", "!!python/name:os.system",
    "!!python/module:antigravity", "!!python/object/apply:subprocess.check_output [[touch, {}]]"])
def test_yaml_tags(tmp_path, marker, tag):
    for place in ("arch: {}\n", "{}\n", "num_pdfs: 3\nframe_subsampling_factor: 3\nmodel: {{x: {}}}\n"):
        (tmp_path / "model.yaml").write_text(place.format(tag.format(marker)))
        refused(lambda: read_model_yaml(tmp_path), tmp_path / "model.yaml", "not valid YAML")
        refused(lambda: read_values(str(tmp_path / "model.yaml")), tmp_path / "model.yaml", "not valid YAML")


def test_yaml_that_grows_is_not_printed_whole(tmp_path):
    """Ten levels of ten times the level below: 10,000 million words where it is written out."""
    lines = ["a0: &a0 x", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 11))]
    (tmp_path / "model.yaml").write_text("\n".join([*lines, "num_pdfs: *a10", "frame_subsampling_factor: 3\n"]))
    refused(lambda: read_model_yaml(tmp_path), "its aliases stand for")
    refused(lambda: read_yaml(tmp_path / "model.yaml"), "its aliases stand for")


def test_deep_nesting(tmp_path):
    (tmp_path / "a.yaml").write_text("a: " + "[" * 100000)
    (tmp_path / "a.json").write_text("[" * 200000)
    refused(lambda: read_yaml(tmp_path / "a.yaml"), tmp_path / "a.yaml")
    refused(lambda: read_values(str(tmp_path / "a.json")), tmp_path / "a.json")
    refused(lambda: read_sidecar(tmp_path / "a.json"), tmp_path / "a.json")
    refused(lambda: read_plan(tmp_path / "a.json"), tmp_path / "a.json")


def test_sizes_that_a_gzip_file_promises_take_no_memory(tmp_path):
    """64 GiB in 2 GB of address space: what is not there is not waited for in memory."""
    head = b"\0BFM \4" + np.int32(1 << 17).tobytes() + b"\4" + np.int32(1 << 17).tobytes()
    with gzip.open(tmp_path / "a.ark.gz", "wb") as stream:
        stream.write(b"utt " + head + bytes(1 << 20))
    done = subprocess.run(["bash", "-c", 'ulimit -v 2000000; exec "$@"', "bash", *PROCESS, "prune-post", "--top-k", "2",
                           f"ark:{tmp_path}/a.ark.gz", "ark:/dev/null"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "pytools"), "OMP_NUM_THREADS": "1",
                               "OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode == 1 and "the matrix or posterior is cut short" in done.stderr, done.stderr


# ---- shards

@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    corpus = make_data(folder / "corpus", utterances=4, num_pdfs=5)
    assert main(["shard", "--shard-size", "50", "--heldout", "0", str(corpus.data), str(corpus.ali),
                 str(folder / "s")]) == 0
    return corpus, folder / "s"


@pytest.fixture
def attacked(sharded, tmp_path, marker):
    """Shards of somebody else: (folder of the training shard, its cuts, attack(change of the cuts))."""
    corpus, made = sharded
    subprocess.run(["cp", "-r", made, tmp_path / "s"], check=True)
    folder = tmp_path / "s" / "train"
    with gzip.open(folder / "cuts.000000.jsonl.gz", "rt") as stream:
        cuts = [json.loads(line) for line in stream]

    def attack():
        with gzip.open(folder / "cuts.000000.jsonl.gz", "wt") as stream:
            stream.writelines(json.dumps(cut) + "\n" for cut in cuts)
        refused(lambda: ShardSource(tmp_path / "s", "train", "none", keep=1).raw(0), folder, "cannot be read")

    return corpus, folder, cuts, attack


def _nothing(folder, name, cuts):
    """A tar file that says of all cuts that it has nothing for them."""
    with tarfile.open(folder / f"{name}.000000.tar", "w") as tar:
        for cut in cuts:
            tar.addfile(tarfile.TarInfo(cut["id"] + ".nodata"))
            tar.addfile(tarfile.TarInfo(cut["id"] + ".nometa"))


def test_features_behind_a_command(attacked, marker):
    corpus, folder, cuts, attack = attacked
    for cut in cuts:
        cut["features"].update(storage_type="kaldiio", storage_path=f"touch {marker}; cat {corpus.data}/feats.ark |")
    _nothing(folder, "features", cuts)
    attack()


def test_recordings_behind_a_command(attacked, marker):
    _, folder, cuts, attack = attacked
    for cut in cuts:
        cut["custom"]["alignment"] = cut["recording"] = {
            "id": cut["id"], "sampling_rate": 8000, "num_samples": 8000, "duration": 1.0, "channel_ids": [0],
            "sources": [{"type": "command", "channels": [0], "source": f"touch {marker}"}]}
    _nothing(folder, "alignment", cuts)
    attack()


def test_tracks_behind_a_command(attacked, marker):
    _, folder, cuts, attack = attacked
    for i, cut in enumerate(cuts):
        cut["features"].update(storage_type="kaldiio", storage_path=f"touch {marker} |")
        track = {"cut": cut, "offset": 0.0, "type": "MonoCut"}
        cuts[i] = {"id": cut["id"], "type": "MixedCut", "tracks": [track, track]}
    attack()


def test_what_is_no_field_of_a_shard_is_not_read(attacked, sharded, tmp_path, marker):
    _, folder, cuts, _ = attacked
    for cut in cuts:
        cut["recording"] = {
            "id": cut["id"], "sampling_rate": 8000, "num_samples": 8000, "duration": 1.0, "channel_ids": [0],
            "sources": [{"type": "command", "channels": [0], "source": f"touch {marker}"}]}
    with gzip.open(folder / "cuts.000000.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(cut) + "\n" for cut in cuts)
    _nothing(folder, "audio", cuts)
    _nothing(folder, "recording", cuts)
    ours, first = (ShardSource(place, "train", "none", keep=1).raw(0) for place in (sharded[1], tmp_path / "s"))
    np.testing.assert_array_equal(ours, first)


def test_a_folder_whose_name_is_a_command(sharded, tmp_path, marker, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"pipe:touch {marker.name};"
    subprocess.run(["cp", "-r", sharded[1], name], check=True)
    assert ShardSource(name, "train", "none", keep=1).raw(0).shape[1] == 8


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("name", ["../../marker", "/tmp/{}", "{}"])
def test_names_in_a_tar_file_leave_it_alone(attacked, marker, tmp_path, kind, name):
    _, folder, cuts, attack = attacked
    with tarfile.open(folder / "features.000000.tar", "w") as tar:
        for ending in (".npy", ".json"):
            member = tarfile.TarInfo(name.format(cuts[0]["id"]) + ending)
            member.type, member.linkname, member.size = kind, "/etc/passwd", 5 * (kind == tarfile.REGTYPE)
            tar.addfile(member, io.BytesIO(b"hello"))
    attack()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_pickled_arrays_in_a_shard(attacked, marker):
    _, folder, cuts, attack = attacked
    objects = np.empty(1, dtype=object)
    objects[0] = Payload(marker)
    data = io.BytesIO()
    np.save(data, objects)
    with tarfile.open(folder / "features.000000.tar", "w") as tar:
        for cut in cuts:
            for ending, content in ((".npy", data.getvalue()), (".json", json.dumps(cut["features"]).encode())):
                member = tarfile.TarInfo(cut["id"] + ending)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    attack()


# ---- model directories and plans

@pytest.mark.parametrize("file, text", [
    ("cmvn_opts", "--utt2spk=ark:touch${{IFS}}{}|"), ("cmvn_opts", "; touch {};"), ("cmvn_opts", "$(touch {})"),
    ("cmvn_opts", "--config=x"), ("cmvn_opts", "--norm-vars=false\n`touch {}`"),
    ("compute", "--ivectors=ark:touch${{IFS}}{}|"), ("compute", "--ivectors='ark:touch {} |'"),
    ("compute", "'touch {} |'")])
def test_options_of_a_network_of_kaldis(tmp_path, marker, monkeypatch, file, text):
    monkeypatch.setattr("shutil.which", lambda program: program)
    data = make_data(tmp_path).data
    (data / "cmvn.scp").write_text("")
    net = tmp_path / "net"
    net.mkdir()
    values = {"cmvn_opts": "--norm-means=true --norm-vars=false", "compute": "--frames-per-chunk=40 --extra=-1"}

    def write():
        (net / "cmvn_opts").write_text(values["cmvn_opts"] + "\n")
        (net / "model.yaml").write_text(json.dumps({"arch": "nnet3", "num_pdfs": 3, "frame_subsampling_factor": 3,
                                                    "model": {"compute": values["compute"]}}))

    write()
    assert "--norm-means=true --norm-vars=false" in logits_rspecifier(net, data / "feats.scp")
    values[file] = text.format(marker)
    write()
    where = net / ("model.yaml" if file == "compute" else file)
    refused(lambda: logits_rspecifier(net, data / "feats.scp"), where, "is no option")


HOSTILE = ["$(touch x)", "`touch x`", "a;touch x", "a|touch x|", "a\ntouch x", "../x", "/x", "--work-dir=..", "-x",
           "@x", "a b", "", "'", '"', "a&b", "a>b", "*", "a/../b", "a//b"]


@pytest.mark.parametrize("change", [
    lambda plan, name: plan.update(corpus=name), lambda plan, name: plan.update(size=name),
    lambda plan, name: plan.update(engine=name), lambda plan, name: plan["sets"][0].update(name=name),
    lambda plan, name: plan["systems"][0].update(name=name), lambda plan, name: plan["models"][0].update(path=name),
    lambda plan, name: plan["systems"][0].update(scale_group=name),
    lambda plan, name: plan["targets"][0].update(scp=name)])
def test_names_of_a_plan(tmp_path, change):
    path = tmp_path / "work" / "exp" / "plan.json"
    plans.write(plans.make_plan(path.parent))
    read_plan(path)
    text = path.read_text()
    for name in HOSTILE:
        values = json.loads(text)
        change(values, name)
        path.write_text(json.dumps(values))
        with pytest.raises(UserError, match="cannot be"):
            read_plan(path)


# ---- terminals and logs

CONTROLS = set("\x1b\x07\x08\u202e\u2066\x9b")


def test_results_and_page_have_no_control_characters(tmp_path, capsys):
    exp, _ = make_hostile_experiment(tmp_path)
    assert report(exp) == 0
    said = capsys.readouterr()
    for text in (said.out, said.err, (exp / "RESULTS").read_text(), (exp / "report" / "report.html").read_text()):
        assert not CONTROLS & set(text)
    assert "\\u202eevil" in (exp / "report" / "report.html").read_text()


def test_messages_of_verbs_have_no_control_characters(tmp_path, capsys):
    """Errors, warnings, what is printed, and what is said by the processes of a verb."""
    name = "utt\x1b[2J\u202e\x07"
    (tmp_path / "ref").write_text(f"{name} a b\nutt2 a\n")
    (tmp_path / "hyp").write_text("utt2 a\n")
    assert main(["score", str(tmp_path / "ref"), str(tmp_path / "hyp")]) == 0
    (tmp_path / "m.scp").write_text(f"{name} nowhere.ark:5\n")
    assert main(["prune-post", "--top-k", "2", f"scp,p:{tmp_path}/m.scp", "ark:/dev/null"]) in (0, 1)
    assert main(["prune-post", "--top-k", "2", f"scp:{tmp_path}/m.scp", "ark:/dev/null"]) == 1
    assert main(["prune-post", "--top-k", "2", "scp:no\x1b[31msuch\nfile", "ark:/dev/null"]) == 1
    said = capsys.readouterr()
    assert "utt\\x1b[2J\\u202e\\x07" in said.err and "no\\x1b[31msuch\\nfile" in said.err
    assert not CONTROLS & set(said.out + said.err)
    done = essence("score", tmp_path / "ref", tmp_path / "hyp")
    assert done.returncode == 0 and not CONTROLS & set(done.stdout + done.stderr)


def test_what_scripts_read_is_printed_to_the_byte(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps({"a": "\u202e\x1b"}))
    assert main(["get", str(tmp_path / "a.json"), "a"]) == 0
    assert capsys.readouterr().out == "\u202e\x1b\n"


# ---- scoring by time

@pytest.mark.parametrize("scorer", ["native", pytest.param("sclite", marks=pytest.mark.sclite)])
def test_words_of_an_stm_a_ctm_and_a_glm(tmp_path, marker, monkeypatch, scorer):
    monkeypatch.chdir(tmp_path)
    for number, word in enumerate(("$(touch${IFS}marker)", "`touch${IFS}marker`", ";touch${IFS}marker;", "'", "|touch",
                                   "-rf", "<(touch${IFS}marker)", "@{[system(q(touch${IFS}marker))]}")):
        stm, ctm, glm = (tmp_path / f"{number}.{name}" for name in ("stm", "ctm", "glm"))
        stm.write_text(f"{word} A {word} 0.00 2.00 <O> yes {word} no\n")
        ctm.write_text(f"{word} A 0.10 0.20 yes\n{word} A 0.40 0.20 {word}\n{word} A 0.70 0.20 no\n")
        glm.write_text(f';; INPUT_DEPENDENT_APPLICATION = "(?{{system(q(touch marker))}})"\n'
                       f"* name {word}\n* format = 'NIST1'\n{word} => yes / [ ] __ [ ] ;; {word}\n")
        for more in ([], ["--glm", str(glm)]):  # counted or refused
            assert main(["score", "--scorer", scorer, *more, str(stm), str(ctm)]) in (0, 1)


@pytest.mark.parametrize("arch", ["os", "antigravity", "registry", "__init__", "../x", "essence_kd.cli.main", "this",
                                  "os; import antigravity", "layers"])
def test_names_of_architectures_import_nothing_else(tmp_path, monkeypatch, arch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "this.py").write_text("open('marker', 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    refused(lambda: build_model(arch, {}, feat_dim=8, num_pdfs=3, frame_subsampling_factor=3), arch, "unknown")
    made = {name for name in set(sys.modules) - before if not name.startswith("essence_kd.")}
    assert not made & {"antigravity", "this"} and not (tmp_path / "marker").exists()
