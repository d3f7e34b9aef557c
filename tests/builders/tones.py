"""A corpus of tones: a recipe that run.sh takes through all its stages in well under a minute of processor time."""
import shutil

from builders import ROOT

CONF = """sizes="default"
description="words of tones in noise"
train_set=learn dev_set=tune eval_sets="test"
labels="test=T"
lm_order=2
teachers="teacher_tones"
student=student_tones
clips=1 post_keep=20 disk_mb=0
"""
MODELS = {
    "teacher_tones": "arch: blstm\nmodel: {hidden: 24, cells: 12, layers: 1, channels: [4, 4], freq_strides: [2, 2],"
                     " dropout: 0.1}\n",
    "student_tones": "arch: tdnn\nmodel: {hidden: 16, dilations: [1], dropout: 0.0}\n",
}
TRAINING = "data: {batch_frames: 600, heldout: 0.2}\noptim: {epochs: 4, lr: 0.01}\ncheckpoint: {every_steps: 4}\n"
PREPARE = '''#!/usr/bin/env bash
help_message="Usage: recipes/tones/prepare_data.sh [options] DATA"
size=default
nj=1
. local/stage.sh
[ $# -eq 1 ] || usage
"$ESSENCE_PYTHON" - "$1" <<'P'
import sys
from pathlib import Path
import numpy as np
from essence_kd.corpus.phones import write_dict
from essence_kd.io.data_dir import write_table
from essence_kd.io.errors import UserError
from essence_kd.io.wave import write_wav
data = Path(sys.argv[1])
pitches = {"A": (400, 900), "B": (600, 1700), "C": (1200, 2600), "D": (2100, 3300)}
words = {"ab": "A B", "ba": "B A", "cd": "C D", "dac": "D A C"}
rng = np.random.default_rng(1)
times = np.arange(960) / 8000  # a phone has 0.12 s
try:
    for name, count in (("learn", 12), ("tune", 4), ("test", 4)):
        folder = data / name
        folder.mkdir(parents=True)
        tables = {table: {} for table in ("wav.scp", "utt2spk", "spk2utt", "text")}
        for number in range(count):
            speaker = f"{name}-s{number % 2}"
            utt = f"{speaker}-u{number:02d}"
            said = rng.choice(sorted(words), size=4)
            parts = [np.zeros(1200)]
            for word in said:
                for phone in words[word].split():
                    heard = np.outer(pitches[phone], rng.uniform(0.75, 1.3, size=12)).ravel()
                    parts.append(sum(600 * np.sin(2 * np.pi * (pitch * times + rng.random())) for pitch in heard))
            parts.append(np.zeros(1200))
            sound = np.concatenate(parts)
            sound += rng.normal(scale=400, size=len(sound))
            write_wav(folder / f"{utt}.wav", sound.astype(np.int16), 8000)
            tables["wav.scp"][utt] = str(folder / f"{utt}.wav")
            tables["utt2spk"][utt] = speaker
            tables["text"][utt] = " ".join(said)
            tables["spk2utt"].setdefault(speaker, []).append(utt)
        tables["spk2utt"] = {speaker: " ".join(utts) for speaker, utts in tables["spk2utt"].items()}
        for table, rows in tables.items():
            write_table(folder / table, rows)
    write_dict(data / "dict", {word: [phones] for word, phones in words.items()})
except (OSError, UserError) as error:
    sys.exit(str(error))
P
'''


def copy_checkout(root):
    """A copy of the checkout that recipes and settings may be added to; root is made."""
    root.mkdir()
    for name in ("local", "recipes", "conf", "pytools"):
        shutil.copytree(ROOT / name, root / name)
    for name in ("run.sh", "path.sh", "cmd.sh"):
        shutil.copy(ROOT / name, root)
    return root


def add_recipe(root, name, conf, prepare):
    """A recipe of a copied checkout; its folder."""
    recipe = root / "recipes" / name
    recipe.mkdir()
    (recipe / "recipe.conf").write_text(conf)
    (recipe / "prepare_data.sh").write_text(prepare)
    (recipe / "prepare_data.sh").chmod(0o755)
    return recipe


def make_tones(root):
    """A copy of the checkout with the recipe ``tones`` and its models."""
    copy_checkout(root)
    add_recipe(root, "tones", CONF, PREPARE)
    for name, model in MODELS.items():
        (root / "conf" / "models" / f"{name}.yaml").write_text(model + TRAINING)
    return root
