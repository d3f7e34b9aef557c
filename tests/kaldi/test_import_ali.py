"""import-ali: Kaldi's alignments as an alignment directory, and what is refused."""
from __future__ import annotations

import numpy as np
import pytest

from essence_kd.hmm.kaldi_alignment import import_alignments, read_transitions
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import read_sidecar, sha256_file
from essence_kd.io.tables import IntVectorWriter, read_int_vectors

TRANSITIONS = """Transition-state 1: phone = SIL hmm-state = 0 pdf = 0
 Transition-id = 1 p = 0.75 [self-loop]
 Transition-id = 2 p = 0.25 [0 -> 1]
Transition-state 2: phone = AA_B hmm-state = 0 pdf = 2
Transition-state 3: phone = AA_B hmm-state = 1 pdf = 1
Transition-state 4: phone = AA_E hmm-state = 1 pdf = 1
Transition-state 5: phone = AA_B hmm-state = 0 pdf = 2
"""


@pytest.fixture
def kaldi(tmp_path):
    """A data directory of 20 utterances, all but the last aligned, and what show-transitions prints."""
    rng = np.random.default_rng(1)
    data = tmp_path / "data"
    data.mkdir()
    ali = {f"u{i:02d}": rng.integers(0, 3, size=5 + i).astype(np.int32) for i in range(20)}
    (data / "utt2spk").write_text("".join(f"{u} s\n" for u in ali))
    (data / "utt2num_frames").write_text("".join(f"{u} {len(a)}\n" for u, a in ali.items()))
    (tmp_path / "transitions.txt").write_text(TRANSITIONS)
    del ali["u19"]
    write(tmp_path, ali)
    return tmp_path, ali


def write(root, ali):
    with IntVectorWriter(f"ark:{root}/ali.ark") as writer:
        for utt, pdfs in ali.items():
            writer.write(utt, pdfs)


def run(root):
    return import_alignments(root / "data", f"ark:{root}/ali.ark", root / "transitions.txt", root / "out")


def test_everything_that_an_alignment_directory_has(kaldi, capsys):
    root, ali = kaldi
    assert run(root) == (20, 1)
    out = root / "out"
    assert (out / "num_pdfs").read_text() == "3\n"
    assert (out / "tree.txt").read_text() == "0 SIL 0\n1 AA_B 1\n1 AA_E 1\n2 AA_B 0\n"
    assert (out / "failed.txt").read_text() == "u19\n" and "1 of 20" in capsys.readouterr().err
    copied = dict(read_int_vectors(f"scp:{out}/ali.scp"))
    assert list(copied) == list(ali) and all((copied[u] == ali[u]).all() for u in ali)
    counts = np.bincount(np.concatenate(list(ali.values())), minlength=3)
    priors = np.array((out / "priors.txt").read_text().split(), dtype=float)
    np.testing.assert_allclose(priors, counts / counts.sum(), rtol=1e-8)
    fields = read_sidecar(out / "ali.json")
    assert (fields["num_utts"], fields["failed"], fields["num_frames"]) == (19, 1, counts.sum())
    assert fields["tree_hash"] == sha256_file(out / "tree.txt") and fields["frame_shift_ms"] == 10


def test_alignments_of_more_than_the_data(kaldi, capsys):
    root, ali = kaldi
    write(root, {**ali, "other": np.full(9, 1, np.int32)})
    assert run(root) == (20, 1) and "1 aligned utterances are not in" in capsys.readouterr().err
    assert list(dict(read_int_vectors(f"scp:{root}/out/ali.scp"))) == list(ali)
    assert read_sidecar(root / "out" / "ali.json")["num_frames"] == sum(map(len, ali.values()))


def test_an_alignment_of_a_chain_tree_has_a_third_of_the_frames(kaldi):
    root, ali = kaldi
    write(root, {utt: pdfs[::3] if utt != "u05" else pdfs for utt, pdfs in ali.items()})
    with pytest.raises(UserError, match="u00 has 2 aligned frames, but .* says 5"):
        run(root)
    import_alignments(root / "data", f"ark:{root}/ali.ark", root / "transitions.txt", root / "out", factor=3)
    copied = dict(read_int_vectors(f"scp:{root}/out/ali.scp"))
    assert (copied["u05"] == ali["u05"]).all()
    assert all((copied[u][::3] == ali[u][::3]).all() and len(copied[u]) == len(ali[u]) for u in ali)
    assert (copied["u00"] == ali["u00"][[0, 0, 0, 3, 3]]).all()
    (root / "data" / "utt2num_frames").unlink()
    with pytest.raises(UserError, match="utt2num_frames: missing.*one in 3: .*get_utt2num_frames.sh"):
        import_alignments(root / "data", f"ark:{root}/ali.ark", root / "transitions.txt", root / "out", factor=3)


def test_a_chain_state_has_two_pdfs(tmp_path):
    path = tmp_path / "t"
    path.write_text("Transition-state 1: phone = a hmm-state = 0 forward-pdf = 1 self-loop-pdf = 0\n")
    assert read_transitions(path) == [(0, "a", 0), (1, "a", 0)]


@pytest.mark.parametrize("text, message", [
    ("nothing\n", "names no transition state"),
    ("Transition-state 1: phone = a hmm-state = 0 pdf = 1\n", "pdf-id 0 belongs to no state"),
])
def test_other_printouts_are_refused(tmp_path, text, message):
    (tmp_path / "t").write_text(text)
    with pytest.raises(UserError, match=message):
        read_transitions(tmp_path / "t")
    with pytest.raises(UserError, match="show-transitions"):
        read_transitions(tmp_path / "none")


@pytest.mark.parametrize("change, message", [
    (lambda a: a.update(u00=np.zeros(4, np.int32)), "u00 has 4 aligned frames, but .* says 5"),
    (lambda a: a.update(u00=np.full(5, 3, np.int32)), "u00 has pdf-id 3, but .* knows 3 pdfs"),
    (lambda a: a.update(u00=np.zeros(0, np.int32)), "u00 has no frame"),
    (lambda a: a.pop("u18"), "18 of the 20 .*the first without: u18.*95%"),
])
def test_alignments_of_other_data_or_another_tree(kaldi, change, message):
    root, ali = kaldi
    change(ali)
    write(root, ali)
    with pytest.raises(UserError, match=message):
        run(root)
    assert not (root / "out" / "ali.scp").exists() and not (root / "out" / "ali.json").exists()


def test_the_verb(kaldi, shell):
    root, _ = kaldi
    done = shell("local/bin/essence", "import-ali", "--transitions", root / "transitions.txt", root / "data",
                 f"ark:cat {root}/ali.ark |", root / "out")
    assert done.returncode == 0 and "19 of 20 utterances aligned" in done.stdout
    done = shell("local/bin/essence", "import-ali", "--transitions", root / "none", root / "data", "ark:x",
                 root / "out")
    assert done.returncode == 1 and "Traceback" not in done.stderr
