"""Sidecars, refusals and atomic writes."""
from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from essence_kd import __version__
from essence_kd.io.data_dir import DataDir
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import (atomic_write, check_match, check_utterances, read_sidecar, sha256_file,
                                      sidecar_path, staging_path, write_sidecar)
from essence_kd.io.tables import MatrixWriter


def test_a_sidecar_comes_back(tmp_path):
    fields = {"num_pdfs": np.int64(8816), "weights": np.array([0.5, 0.25]), "k": 20, "selection": "top-k",
              "mean_mass": np.float32(0.5), "models": (tmp_path / "a", "b"), "nested": {"ö": None}}
    write_sidecar(tmp_path / "essence.json", fields)
    assert read_sidecar(tmp_path / "essence.json") == {
        "num_pdfs": 8816, "weights": [0.5, 0.25], "k": 20, "selection": "top-k", "mean_mass": 0.5,
        "models": [str(tmp_path / "a"), "b"], "nested": {"ö": None}, "tool_version": __version__}
    assert os.listdir(tmp_path) == ["essence.json"]


def test_a_sidecar_that_cannot_be_stored(tmp_path):
    with pytest.raises(ValueError):
        write_sidecar(tmp_path / "essence.json", {"mean_mass": float("nan")})
    with pytest.raises(UserError, match="mkdir -p"):
        write_sidecar(tmp_path / "no" / "essence.json", {})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("content, said", [(None, "missing"), ("{", "not a JSON file"), ("[1]", "no JSON object"),
                                           ("", "not a JSON file"), ("\udcff", "not a JSON file"),
                                           ('{"num_pdfs": "many"}', "num_pdfs is 'many', not a number")])
def test_sidecars_that_are_none(tmp_path, content, said):
    path = tmp_path / "essence.json"
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=f"essence.json: {said}|essence.json: holds {said}"):
        read_sidecar(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_sidecar(tmp_path)


@pytest.mark.parametrize("specifier, path", [
    ("ark,scp:exp/e/post.ark,exp/e/post.scp", "exp/e/essence.json"), ("scp:exp/e/post.scp", "exp/e/essence.json"),
    ("exp/e/post.scp", "exp/e/essence.json"), ("ark,t:wide.ark", "wide.json"), ("scp,p:d/wide.scp", "d/wide.json"),
    ("ark:d/full.1.ark", "d/full.1.json"), ("ark:d/wide.ark.gz", "d/wide.json"),
    ("ark:d/full.1.ark.gz", "d/full.1.json"), ("ark:d/post.gz", "d/essence.json"),
    ("compact:ark,scp:d/a.ark,d/b.scp", "d/b.json"), ("ark,scp:a.ark,d,e/b.scp", "d,e/b.json"),
    ("ark:/dev/null", None), ("ark:-", None), ("ark:", None),
    ("ark:gunzip -c a.gz |", None), ("ark:| gzip -c > b.ark", None)])
def test_where_a_sidecar_lies(specifier, path):
    assert sidecar_path(specifier) == path


def test_a_mismatch_names_both_files_and_both_values():
    a = {"num_pdfs": 8816, "tree_hash": "abc", "frame_shift_ms": 30, "weights": [0.5, 0.5]}
    check_match("a.json", a, "b.json", {**a, "frame_shift_ms": 30.0, "weights": (0.5, 0.5), "k": 3}, [*a, "k"])
    for key, other in (("num_pdfs", 195), ("tree_hash", "abd"), ("frame_shift_ms", 10.0), ("weights", [1.0, 0.5]),
                       ("num_pdfs", None)):
        with pytest.raises(UserError) as caught:
            check_match("x/a.json", a, "y/b.json", {**a, key: other}, a)
        for part in (key, "x/a.json", "y/b.json", str(a[key]), str(other)):
            assert part in str(caught.value)


def test_a_key_that_one_side_lacks():
    check_match("a.json", {"k": 1}, "b.json", {}, ["k", "num_pdfs"])
    with pytest.raises(UserError, match="b.json: says nothing of k"):
        check_match("a.json", {"k": 1}, "b.json", {}, ["k"], required=True)


def test_utterance_sets():
    check_utterances("a.scp", ["u1", "u2"], "b.scp", iter(["u2", "u1"]))
    with pytest.raises(UserError, match=r"a.scp has 5, b.scp has 2; 4 not in b.scp \(first: u1, u2, u3, ...\); "
                                        r"1 not in a.scp \(first: x\)"):
        check_utterances("a.scp", ["u1", "u2", "u3", "u4", "y"], "b.scp", ["x", "y"])


def test_atomic_write_gives_the_name_at_the_end(tmp_path):
    path = tmp_path / "f.txt"
    with atomic_write(path) as staged:
        staged.write_text("new")
        assert not path.exists() and staged.parent == tmp_path
    assert path.read_text() == "new"
    with pytest.raises(KeyError):
        with atomic_write(path) as staged:
            staged.write_text("half")
            raise KeyError
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["f.txt"]


def test_what_is_half_written_has_a_name_that_nobody_can_guess(tmp_path):
    """Else a link of that name, in a folder such as /tmp, would have a file of this user's overwritten."""
    names = {staging_path(tmp_path / "f.txt") for _ in range(50)}
    assert len(names) == 50 and all(os.path.dirname(name) == str(tmp_path) for name in names)
    assert all(os.path.basename(name).startswith(".f.txt.") and name.endswith(".tmp") for name in names)


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600), (0o000, 0o666)])
def test_what_is_written_has_the_permissions_of_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_sidecar(tmp_path / "essence.json", {})
        with MatrixWriter(f"ark,scp:{tmp_path}/a.ark,{tmp_path}/a.scp") as writer:
            writer.write("u", np.zeros((2, 3), np.float32))
        DataDir(tmp_path, {"u": "u.wav"}, {"u": "a b"}, {"u": "u"}).write(tmp_path / "data")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 6 and {path.stat().st_mode & 0o777 for path in files} == {mode}
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o777 & ~mask


def test_atomic_write_follows_links_and_says_what_failed(tmp_path):
    os.symlink("real.txt", tmp_path / "link.txt")
    with atomic_write(tmp_path / "link.txt") as staged:
        staged.write_text("x")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "x"
    with pytest.raises(UserError, match="none/f.txt: cannot be written: its directory does not exist"):
        with atomic_write(tmp_path / "none" / "f.txt") as staged:
            staged.write_text("x")
    with pytest.raises(UserError, match="cannot be written: No space left"):
        with atomic_write(tmp_path / "f.txt"):
            with open("/dev/full", "w") as stream:
                stream.write("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder: cannot be written"):
        with atomic_write(tmp_path / "folder") as staged:
            staged.write_text("x")
    with pytest.raises(FileNotFoundError) as caught:  # what is copied is at fault, not the copy
        with atomic_write(tmp_path / "f.txt") as staged:
            shutil.copyfile(tmp_path / "gone", staged)
    assert str(caught.value.filename) == str(tmp_path / "gone")
    assert sorted(os.listdir(tmp_path)) == ["folder", "link.txt", "real.txt"]


def test_hash_of_a_file(tmp_path):
    path = tmp_path / "tree.txt"
    path.write_bytes(b"0 SIL 0\n" * 300000)
    assert sha256_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match="gone.txt: cannot be read"):
        sha256_file(Path("gone.txt"))
