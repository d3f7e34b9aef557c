"""A corpus is two files, recipe.conf and prepare_data.sh: run.sh on such a one, in a copy of the checkout."""
import gzip
import json
import os
import re

import pytest
from builders.tones import add_recipe, copy_checkout

CONF = """options="loudness"
options_help="  --loudness N                of the noise"
sizes="default"
description="two words in noise"
train_set=learn dev_set=tune eval_sets="easy hard" untranscribed_sets="more"
labels="easy=E"
lm_order=2
teachers="blstm"
student=student_tdnn
post_keep=10 disk_mb=100 sample_rate=16000
"""
PREPARE = """#!/usr/bin/env bash
help_message="Usage: recipes/words/prepare_data.sh [options] DATA"
size=default
nj=1
loudness=900
. local/stage.sh
[ $# -eq 1 ] || usage
"$ESSENCE_PYTHON" - "$1" "$loudness" <<'P'
import sys
from pathlib import Path
import numpy as np
import soundfile
data, loudness = Path(sys.argv[1]), int(sys.argv[2])
for name in ("learn", "tune", "easy", "hard", "more"):
    d = data / name
    d.mkdir(parents=True)
    utts = [f"{name}-u{i}" for i in range(3)]
    for i, utt in enumerate(utts):
        noise = np.random.default_rng(i).integers(-loudness, loudness, 16000).astype(np.int16)
        soundfile.write(d / f"{utt}.flac", noise, 16000)
    tables = {"wav.scp": "{0} {1}/{0}.flac", "utt2spk": "{0} {0}", "spk2utt": "{0} {0}", "text": "{0} WORD two"}
    if name == "more":
        del tables["text"]
    for table, line in tables.items():
        (d / table).write_text("".join(line.format(utt, d) + "\\n" for utt in utts))
words = data / "dict"
words.mkdir()
for table, text in {"silence_phones": "SIL\\nSPN\\n", "optional_silence": "SIL\\n", "nonsilence_phones": "A\\nB\\n",
                    "lexicon": "<unk> SPN\\nWORD A B\\ntwo B A\\n"}.items():
    (words / f"{table}.txt").write_text(text)
P
""".replace("WORD", "one")
SETS = ("learn", "tune", "easy", "hard")
MORE = """#!/usr/bin/env bash
help_message="Usage: recipes/words/prepare_untranscribed.sh [options] DATA"
size=default
nj=1
loudness=900
. local/stage.sh
[ $# -eq 1 ] || usage
for set in found found_clean; do
  mkdir "$1/$set"
  for u in 0 1; do
    cp "$1/learn/learn-u$u.flac" "$1/$set/found-u$u.flac"
    echo "found-u$u $1/$set/found-u$u.flac" >>"$1/$set/wav.scp"
    echo "found-u$u found" >>"$1/$set/utt2spk"
  done
done
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of the checkout with a recipe ``words``."""
    root = copy_checkout(tmp_path / "checkout")
    add_recipe(root, "words", CONF, PREPARE)
    return root


@pytest.fixture
def run(shell, checkout, tmp_path):
    """run.sh of the copy by ``sh``; the data directory lies in ``work``."""
    def go(*options):
        return shell("sh", "run.sh", "--work-dir", tmp_path / "work", "--nj", "2", *options, cwd=checkout,
                     env={"PYTHONPATH": "", "WORK_DIR": ""}, timeout=600)
    return go


def stages(done):
    """Numbers of the stages that had something to do."""
    assert done.returncode == 0, done.stdout + done.stderr
    return [int(number) for number in re.findall(r"^run\.sh: stage (\d+) took ", done.stdout, re.M)]


def words_of(data):
    return {line.split()[0] for line in (data / "lang" / "words.txt").read_text().splitlines()}


def test_a_corpus_is_two_files(run, checkout, tmp_path):
    work, to_2 = tmp_path / "work", ("--corpus", "words", "--stop-stage", "2", "--untranscribed", "true")
    data = work / "data" / "words"
    assert "Corpus words\n  --loudness N  " in run("--help").stdout
    for options, message in ((("--loudness", "9"), "corpus mini has no option --loudness"),
                             (("--corpus", "words", "--size", "tiny"), "has no size 'tiny'; it has: default"),
                             (("--corpus", "words", "--fsdd-dir", "/tmp"), "corpus words has no option --fsdd-dir")):
        done = run(*options)
        assert done.returncode == 2 and message in done.stderr and not work.exists()

    other = checkout / "recipes" / "copied"  # has the same option, and one that run.sh has
    other.mkdir()
    (other / "recipe.conf").write_text(CONF.replace('options="', 'options="seed '))
    done = run("--corpus", "copied")
    assert done.returncode == 1 and "recipes/copied/recipe.conf: options: 'seed' is an option of run.sh" in done.stderr
    assert stages(run(*to_2, "--loudness", "500")) == [0, 1, 2]
    plan = json.loads((work / "exp" / "words" / "plan.json").read_text())
    assert [(s["name"], s["role"], s["label"]) for s in plan["sets"]] == [
        ("learn", "train", "learn"), ("tune", "dev", "tune"), ("easy", "test", "E"), ("hard", "test", "hard"),
        ("more", "untranscribed", "more")]
    for name in SETS:
        for folder in (data / name, data / f"{name}_hires"):
            assert len((folder / "feats.scp").read_text().splitlines()) == 3
            assert (folder / ".marker").read_text().startswith("done ")
    assert len((data / "more_cut_hires" / "feats.scp").read_text().splitlines()) == 3
    assert not (data / "more" / "text").exists() and words_of(data) >= {"one", "two"}
    noise = (data / "learn" / "learn-u0.flac").read_bytes()
    done = run(*to_2, "--loudness", "500")
    assert stages(done) == [] and "nothing has changed: every stage was up to date" in done.stdout

    # other data, by an option, by a corrected script, or by another recipe.conf: stage 0 is stale, and what comes of it
    to_1 = ("--corpus", "words", "--stop-stage", "1", "--loudness", "600")
    assert stages(run(*to_1)) == [0, 1] and not (data / "learn" / "feats.scp").exists()
    assert (data / "learn" / "learn-u0.flac").read_bytes() != noise
    mine = checkout / "recipes" / "words"
    (data / "download").mkdir()  # what was fetched stays
    (data / "of_old").touch()
    (mine / "prepare_data.sh").write_text(PREPARE.replace("one ", "corrected "))
    assert stages(run(*to_1)) == [0, 1]
    assert words_of(data) >= {"corrected", "two"} and "one" not in words_of(data)
    assert (data / "download").is_dir() and not (data / "of_old").exists()
    (mine / "recipe.conf").write_text(CONF + "clips=2\n")
    assert stages(run(*to_1)) == [0, 1]
    # a language model text put beside the data: the language model alone
    (data / "lm_text").write_text("two two two\n")
    assert stages(run(*to_1)) == [1]
    (mine / "helper.py").write_text("a = 1\n")  # what prepare_data.sh may call
    assert stages(run(*to_1)) == [0, 1]

    # a script that cannot be read takes nothing away; one that dies is named, and how
    (mine / "prepare_data.sh").write_text("#!/bin/sh\nfor i in 1; do\necho dcorrected\n")
    done = run(*to_1)
    assert done.returncode == 1 and "recipes/words/prepare_data.sh: line 4: syntax error" in done.stderr
    assert "stage 0 (data preparation) failed: local/prepare_data.sh ended with status 1" in done.stderr
    assert (data / "lang").exists()
    (mine / "prepare_data.sh").write_text("#!/bin/sh\nkill -9 $$\n")
    done = run(*to_1)
    assert done.returncode == 1 and "stage 0 (data preparation) failed" in done.stderr
    assert "recipes/words/prepare_data.sh was killed by SIGKILL (status 137; out of memory?)" in done.stderr
    assert not (data / "lang").exists(), "what the old script made is no data"
    done = run("--corpus", "words", "--stage", "1", "--stop-stage", "1")
    assert done.returncode == 1 and "stage 0 makes it" in done.stderr


def test_what_was_changed_by_hand_counts(run, tmp_path):
    """Texts, segments and audio of stage 0: the change is kept, and what was made of the old is made anew."""
    data, to_2 = tmp_path / "work" / "data" / "words", ("--corpus", "words", "--stop-stage", "2")
    assert stages(run(*to_2)) == [0, 1, 2]
    text = data / "learn" / "text"
    was = text.read_text()
    text.write_text(was.replace("two", "one"))  # as long as before
    assert stages(run(*to_2)) == [1, 2]
    text.write_text(was.replace("two", "two two two"))
    done = run(*to_2)
    assert stages(done) == [1, 2] and "changed by hand and is kept: learn/text" in done.stdout
    assert "two two two" in text.read_text()
    os.utime(data / "tune" / "tune-u0.flac", (0, 0))  # another recording of the same size
    (data / "easy" / "segments").write_text("".join(f"easy-u{i} easy-u{i} 0 0.5\n" for i in range(3)))
    done = run(*to_2)
    assert stages(done) == [2] and re.findall(r"features of \S+/(\w+) are up to date", done.stdout) == ["learn", "hard"]
    done = run(*to_2)
    assert stages(done) == [] and "--force true makes all anew" in done.stdout
    assert stages(run(*to_2, "--force", "true")) == [0, 1, 2] and text.read_text() == was
    text.write_text("x")
    os.utime(text, (0, 0))  # not by hand: what a crash has cut short is made anew
    assert stages(run("--corpus", "words", "--stop-stage", "0")) == [0] and text.read_text() == was


def test_audio_without_transcripts_comes_on_request_and_makes_nothing_stale(run, checkout, tmp_path):
    mine, data = checkout / "recipes" / "words", tmp_path / "work" / "data" / "words"
    to_2, more = ("--corpus", "words", "--stop-stage", "2"), ("--untranscribed", "true")
    (mine / "recipe.conf").write_text(CONF.replace('"more"', '"more found" teacher_hears="found=found_clean"'))
    (mine / "prepare_untranscribed.sh").write_text(MORE)
    (mine / "prepare_untranscribed.sh").chmod(0o755)
    assert stages(run(*to_2)) == [0, 1, 2] and not (data / "found").exists() and not (data / "more_cut").exists()
    markers = {name: (data / name / ".marker").read_bytes() for name in (*SETS, "learn_hires")}
    done = run(*to_2, *more)
    assert stages(done) == [0, 2] and done.stdout.count("are up to date") == 4
    for name in ("more", "found", "found_clean"):
        count = 3 if name == "more" else 2
        assert len((data / f"{name}_cut_hires" / "feats.scp").read_text().splitlines()) == count
        assert not (data / name / "feats.scp").exists()
    assert markers == {name: (data / name / ".marker").read_bytes() for name in markers}
    assert stages(run(*to_2, *more)) == []


def said(done):
    return done.stdout + done.stderr


def test_words_that_the_lexicon_lacks(run, checkout, tmp_path):
    """They are the word for unknown ones in transcripts and in the text for the language model, and are counted."""
    mine, data = checkout / "recipes" / "words" / "prepare_data.sh", tmp_path / "work" / "data" / "words"
    mine.write_text(PREPARE.replace('"{0} one two"', '"{0} one two" if name == "easy" else "{0} one yak two"')
                    + "printf 'one two\\none gnu gnu two\\none yak\\n' >\"$1/lm_text\"\n")
    done = run("--corpus", "words", "--stop-stage", "4")
    assert stages(done) == [0, 1, 2, 3, 4]
    for told in ("lm_text: 3 words (2 different; most often: gnu 2, yak 1) are not in ",
                 "learn: 3 utterances, 3 speakers, 3 recordings, 9 words, 0.1 min, 3 words (1 different; most often: "
                 "yak 3) outside the lexicon",
                 "easy: 3 utterances, 3 speakers, 3 recordings, 6 words, 0.1 min, 0 words outside the lexicon",
                 "learn/text: 3 words (1 different; most often: yak 3) are not in ",
                 "learn_sp/text: 9 words (1 different; most often: yak 9) are not in ", "taken as <unk>"):
        assert told in said(done)
    with gzip.open(data / "lm" / "lm.arpa.gz", "rt") as arpa:
        model = arpa.read()
    assert "\t<unk> <unk>\n" in model and "yak" not in model
    assert len((tmp_path / "work" / "exp" / "words" / "ali" / "ali.scp").read_text().splitlines()) == 9

    # a lexicon without such a word: said by name, with what to add
    mine.write_text(mine.read_text().replace('"SIL\\nSPN\\n"', '"SIL\\n"').replace("<unk> SPN\\n", ""))
    done = run("--corpus", "words", "--stop-stage", "1")
    assert done.returncode == 1 and "lm_text: line 2 has the word 'gnu' (and 1 more words)" in said(done)
    assert "add '<unk> SPN' to lexicon.txt of the dict directory, and SPN to silence_phones.txt" in said(done)
    # reserved words are refused by stage 2 in every set
    mine.write_text(PREPARE.replace('"{0} one two"', '"{0} one two" if name != "hard" else "{0} one <s>"'))
    done = run("--corpus", "words", "--stop-stage", "2")
    assert done.returncode == 1 and "hard/text: hard-u0 has '<s>', which cannot be a word" in said(done)
