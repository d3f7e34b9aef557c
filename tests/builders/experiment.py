"""What the stages of a run leave in exp/ and data/, for the report to read."""
import json
import random
import wave
from dataclasses import replace

import kaldialign
import numpy as np
from builders.plans import make_plan, make_sets, make_system, make_target, student, write

from essence_kd.cli.main import main
from essence_kd.distill.essence import EssenceSettings
from essence_kd.io.settings import to_dict
from essence_kd.io.tables import IntVectorWriter, MatrixWriter
from essence_kd.plan.grid import make_point
from essence_kd.plan.plan import read_plan
from essence_kd.score.experiment import load_system

SETS = {"eval_swbd": 1.0, "eval_che": 1.6, "dev": 1.0}  # name -> how hard it is
RATES = {"gmm": 0.45, "teacher_1": 0.2, "teacher_2": 0.22, "ensemble": 0.17, "baseline": 0.26, "student_full": 0.21,
         "student_essence": 0.2}
WORDS = "yeah i think so you know it was like really good we went to the lake <uh> and my brother called".split()
PHONES = "SIL HH_B AH_I L_I OW_E AY_S SIL N_B OW_E SIL".split()


def _noisy(rng, words, rate):
    out = []
    for word in words:
        kind = rng.random()
        out += [rng.choice(WORDS)] if kind < 0.6 * rate else [] if kind < 0.8 * rate else [word]
        out += [rng.choice(WORDS)] if rng.random() < 0.15 * rate else []
    return out


def _text(table):
    return "".join(" ".join([utt, *words]) + "\n" for utt, words in table.items())


def make_ablation(exp, plan):
    """results.json of an ablation: hard labels (seed 1 is the twin) and three k, two seeds each."""
    base, sets = EssenceSettings(), plan.sets_of("test") + [plan.dev_set]
    twin = next(plan.main_systems("twin"))
    first = load_system(exp, twin, sets).scores
    points, comparisons = {}, []
    for changes in ({"select": "hard"}, {"top_k": 1}, {"top_k": 5, "soft_weight": 0.5}, {"top_k": 5}, {}):
        point = make_point(changes, base, 2, "a test")
        systems = {str(seed): f"ablation/{point.name}/seed_{seed}" for seed in (1, 2)}
        taken = point.name == "hard" and first
        if taken:
            systems["1"] = twin.name
        wer = {s: {"wer": 30.0, "each_seed": [first[s].total.wer if taken and s in first else 29.0, 31.0],
                   "interval": [28.0, 32.0]} for s in (*sets, "total")}
        points[point.name] = {
            "label": point.title, "systems": systems, "seeds": [1, 2], "wer": wer, "retained_mass": 0.9,
            "entries_per_frame": None if point.name == "hard" else 5.0,
            "settings": {**to_dict(point.essence), "teachers": [], "loss": None, "student": None}}
        if point.name != "hard":
            comparisons.append({"a": point.name, "b": "hard", "set": "total", "diff": -1.25, "low": -2.5, "high": 0.5,
                                "seeds": [1, 2]})
    return {"base": to_dict(base), "dev_set": plan.dev_set, "points": points, "comparisons": comparisons,
            "best_on_dev": "k5"}


def make_experiment(root, rates=RATES, seed=1, speakers=12, turns=4, factors=SETS, **values):
    """Texts, model directories, alignment, features, essence and stages, as the stages of run.sh leave them.

    ``rates``: error rates of the systems that were decoded; ``values``: fields of the plan. Returns EXP and DATA.
    """
    rng = random.Random(seed)
    exp, data = root / "exp" / "mini", root / "data" / "mini"
    plan = write(make_plan(exp, **{"seed": 3, "clips": 2, **values}))
    role = {system.name: system.role for system in plan.systems}
    for name, factor in factors.items():
        refs = {f"{name[-3:]}{s:02d}-{t:02d}": [rng.choice(WORDS) for _ in range(rng.randint(3, 14))]
                for s in range(speakers) for t in range(turns)}
        (data / name).mkdir(parents=True)
        (data / name / "utt2spk").write_text("".join(f"{u} {u.split('-')[0]}\n" for u in refs))
        for system, rate in rates.items():
            out = exp / system / f"decode_{name}"
            out.mkdir(parents=True)
            (out / "ref.txt").write_text(_text(refs))
            (out / "hyp.txt").write_text(_text({u: _noisy(rng, w, rate * factor) for u, w in refs.items()}))
            (out / "decode.json").write_text(json.dumps(
                {"decoder": "kaldi", "rtf": 0.02, "acoustic_scale": 0.1, "word_insertion_penalty": -0.5, "no_path": 0,
                 "active_states_per_frame": 321.4}))
        with wave.open(str(data / f"{name}.wav"), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes((8000 * np.sin(np.arange(16000) / 3)).astype("<i2").tobytes())
        (data / name / "wav.scp").write_text(f"{name}-A {data}/{name}.wav\n")
        (data / name / "segments").write_text("".join(f"{u} {name}-A 0.5 1.5\n" for u in refs))
    for number, system in enumerate(s for s in rates if role[s] not in ("gmm", "ensemble")):
        (exp / system / "info.json").write_text(json.dumps({"params": 1000 * (number + 1), "mflop_per_frame": 0.2,
                                                            "look_ahead_ms": 230 if number else None,
                                                            "seconds": 12.5, "epochs": 5}))
        (exp / system / "progress.jsonl").write_text("".join(json.dumps(
            {"epoch": e, "train_loss": 3 / e, "hard_loss": 3 / e, "dev_loss": 3.2 / e, "dev_frame_acc": 0.1 * e,
             "soft_loss": 2 / e if role[system] == "student" else None, "seconds": 2.5, "lr": 0.001}) + "\n"
            for e in range(1, 6)))
    pruned = next(s for s in plan.main_systems("student") if plan.target(s.targets).kind == "post")
    if pruned.name in rates:
        (exp / pruned.name / "model.yaml").write_text(
            "arch: tdnn\ntrain: {optim: {epochs: 5, lr: 0.003}, distill: {soft_weight: 0.9, temperature: 1.0}}\n")
    for system in (name for name in rates if role[name] == "gmm"):
        (exp / system / "gmm.json").write_text(json.dumps({"num_gauss": 100, "dim": 39, "seconds": 60.5}))
    ali, feats = exp / "ali", data / "train_sp_hires"
    ali.mkdir()
    feats.mkdir()
    states = {(p, s): 3 * i + s for i, p in enumerate(sorted(set(PHONES))) for s in range(3)}
    (ali / "num_pdfs").write_text(f"{len(states)}\n")
    (ali / "tree.txt").write_text("".join(f"{pdf} {p} {s}\n" for (p, s), pdf in states.items()))
    pdfs = np.repeat([states[p, s] for p in PHONES for s in range(3)], 6).astype(np.int32)
    noise = np.random.default_rng(2)
    with IntVectorWriter(f"ark,scp:{ali}/ali.ark,{ali}/ali.scp") as vectors, \
            MatrixWriter(f"ark,scp:{feats}/feats.ark,{feats}/feats.scp") as matrices:
        for utt in ("sp0.9-a-1", "a-1"):
            vectors.write(utt, pdfs)
            matrices.write(utt, noise.normal(size=(len(pdfs), 40)).astype(np.float32))
    (feats / "text").write_text("a-1 hello i know\nsp0.9-a-1 hello i know\n")
    (data / "dict").mkdir()
    (data / "dict" / "lexicon.txt").write_text("hello HH AH L OW\ni AH\ni AY\nknow N OW\n")
    essence = (exp / plan.target(pruned.targets).scp).parent
    essence.mkdir()
    (essence / "essence.json").write_text(json.dumps({"num_pdfs": 21, "selection": "top-k", "k": 20, "mean_mass": 0.975,
                                                      "mass": "renorm", "temperature": 1.0, "num_frames": 100}))
    (essence / "post.1.ark").write_bytes(bytes(20000))
    (essence / "post.2.ark").write_bytes(bytes(512))
    (exp / "posteriors").mkdir()
    (exp / "posteriors" / "post_stats.json").write_text(json.dumps(
        {"f_k": [1 - 0.4 / k for k in range(1, 101)], "k_for_mass": {"0.9": {"mean": 4}, "0.99": {"mean": None}},
         "perplexity": 3.14159, "alignment": {"recall_at_k": {"1": 0.71, "20": 0.995}}}))
    (exp / "calibration").mkdir()
    teacher = next(iter(plan.main_systems("ensemble")), None)
    teacher = teacher and teacher.name
    bins = [[100 * b, (b + 0.5) / 15, (b + 0.3) / 15] for b in range(15)]
    (exp / "calibration" / "calibration.json").write_text(json.dumps({
        "labels": ["ali.scp"], "reference": teacher, "systems": {
        name: {"frames": 10500, "accuracy": 0.5, "confidence": 0.52, "ece": 0.0123, "nll": 1.875, "bins": bins,
               "without_alignment": 0, "same_best": 0.8125, "divergence": 0.375}
        for name in (pruned.twin, pruned.name)}}))
    (exp / "ablation").mkdir()
    (exp / "ablation" / "results.json").write_text(json.dumps(make_ablation(exp, plan)))
    (exp / "stages.jsonl").write_text("".join(json.dumps(s) + "\n" for s in (
        {"stage": 5, "name": "teachers", "seconds": 99.0, "bytes": 5},
        {"stage": 4, "name": "gmm", "seconds": 61, "bytes": 7},
        {"stage": 10, "name": "report", "seconds": 2, "bytes": 1},
        {"stage": 5, "name": "teachers", "seconds": 300, "cpu_seconds": 565, "bytes": 8, "unfinished": True},
        {"stage": 5, "name": "teachers", "seconds": 10, "cpu_seconds": 15, "bytes": 1},
        {"stage": 9, "name": "decoding", "seconds": 7, "bytes": 0, "unfinished": True})))
    return exp, data


def replan(exp, **changes):
    """Write EXP/plan.json anew with other fields."""
    return write(replace(read_plan(exp), **changes))


def report(exp, *options):
    """``essence report`` with few draws; the exit status."""
    return main(["report", "--draws", "500", *options, str(exp)])


def recount(exp, system, name):
    """Errors of a system on a set, counted straight from the files with kaldialign."""
    ref, hyp = ({line.split()[0]: line.split()[1:] for line in (exp / system / f"decode_{name}" / file).open()}
                for file in ("ref.txt", "hyp.txt"))
    total = {"ins": 0, "del": 0, "sub": 0, "words": 0, "utterances": len(ref)}
    for utt, words in ref.items():
        found = kaldialign.edit_distance(words, hyp[utt])
        for key in ("ins", "del", "sub"):
            total[key] += found[key]
        total["words"] += len(words)
    total["wer"] = round(100 * (total["ins"] + total["del"] + total["sub"]) / total["words"], 4)
    return total


# What a page, a terminal or a log might obey: words, ids, labels and descriptions that are made for it.
HOSTILE = ["<script>window.hacked=1</script>", "<img/src=x/onerror=window.hacked=2>", "javascript:window.hacked=3",
           "</style><script>window.hacked=4</script>", "</title><svg/onload=window.hacked=5>", "&lt;script&gt;",
           "&#60;script&#62;window.hacked=6", "\"onmouseover=\"window.hacked=7",
           "'onfocus='window.hacked=8'autofocus='", "{{7*7}}", "{%if_1%}", "]]><!--",
           "\u202eevil\u2066", "\x1b[2J\x1b]0;title\x07", "\x1b[31mred", "a\x08b",
           "<base/href=http://192.0.2.1/>", "<link/rel=stylesheet/href=http://192.0.2.1/x.css>",
           "<iframe/src=http://192.0.2.1/>", "<meta/http-equiv=refresh/content=0;url=http://192.0.2.1/>",
           "<style>*{background:url(http://192.0.2.1/y)}</style>", "url(http://192.0.2.1/z)", "${7*7}", "`x`", "$(x)"]


def make_hostile_experiment(root):
    """An experiment whose words, ids, labels, corpus and description are HOSTILE. Returns EXP and DATA."""
    exp, data = make_experiment(root)
    name, change = "eval_swbd", {}
    ids = (exp / "baseline" / f"decode_{name}" / "ref.txt").read_text().splitlines()
    for number, line in enumerate(ids):
        change[line.split()[0]] = f"{line.split()[0]}-{HOSTILE[number % len(HOSTILE)]}"
    words = dict(zip(WORDS, HOSTILE))

    def rewrite(path):
        rows = [line.split(" ") for line in path.read_text().splitlines()]
        rows = [[change.get(row[0], row[0]), *(words.get(word, word) for word in row[1:])] for row in rows]
        path.write_text("".join(" ".join(row) + "\n" for row in rows))

    for path in (*exp.glob(f"*/decode_{name}/*.txt"), data / name / "segments", data / name / "utt2spk"):
        rewrite(path)
    plan = read_plan(exp)
    replan(exp, description=" ".join(HOSTILE),
           sets=[replace(s, label=HOSTILE[n]) for n, s in enumerate(plan.sets)],
           systems=[replace(s, label=HOSTILE[-n]) for n, s in enumerate(plan.systems, 1)],
           targets=[replace(t, label=HOSTILE[n]) for n, t in enumerate(plan.targets)])
    stages = [json.dumps({"stage": n, "name": text, "seconds": 9, "bytes": 1}) for n, text in enumerate(HOSTILE[:9])]
    (exp / "stages.jsonl").write_text("\n".join(stages) + "\n")
    calibration = exp / "calibration" / "calibration.json"
    calibration.write_text(json.dumps({**json.loads(calibration.read_text()), "labels": HOSTILE}))
    found = exp / "student_essence" / f"decode_{name}" / "decode.json"
    found.write_text(json.dumps({**json.loads(found.read_text()), "decoder": HOSTILE[0]}))
    (data / "train_sp_hires" / "text").write_text(f"a-1 {' '.join(HOSTILE[:3])}\nsp0.9-a-1 hello\n")
    (data / "dict" / "lexicon.txt").write_text("".join(f"{word} HH AH L OW\n" for word in HOSTILE) + "hello HH\n")
    ablation = exp / "ablation" / "results.json"
    values = json.loads(ablation.read_text())
    for n, point in enumerate(values["points"].values()):
        point["label"] = HOSTILE[n]
    ablation.write_text(json.dumps(values))
    return exp, data


FREE_SETS = {"mon": "train", "fri": "test", "tune": "dev", "sat": "test", "sun": "untranscribed"}
FREE_RATES = {"old": 0.45, "student_one": 0.2, "gmm": 0.24, "choir": 0.17, "alice": 0.28, "carol": 0.3, "baseline": 0.2,
              "dora": 0.19, "eve": 0.21, "fay": 0.22, "gil": 0.23, "hal": 0.24}


def free_names():
    """Fields of a plan whose names say nothing, or the wrong thing: two students with twins, two k, other sets."""
    shared = {"teachers": ["student_one", "gmm"], "sets": ["mon"]}
    return {
        "sets": make_sets(FREE_SETS, {"fri": "Friday", "sat": "Saturday"}),
        "targets": [make_target("soup", "dense", scp="soups/thick.scp", **shared),
                    *(make_target(name, k=k, **shared) for name, k in (("full", 20), ("few", 5)))],
        "systems": [
            make_system("old", "gmm", "The old one"),
            make_system("student_one", "teacher", "Teacher A", model="big", seed=1),
            make_system("gmm", "teacher", "Teacher B", model="large", seed=1),
            make_system("choir", "ensemble", "All together", teachers=["student_one", "gmm"]),
            make_system("alice", "twin", "Alice", model="small", seed=1),
            make_system("carol", "twin", "Carol", model="tiny", seed=1),
            *(student(name, targets, twin, name.capitalize(), model={"alice": "small", "carol": "tiny"}[twin],
                      mass=None if targets == "soup" else "renorm")
              for name, targets, twin in (
                  ("baseline", "soup", "alice"), ("dora", "full", "alice"), ("eve", "few", "alice"),
                  ("fay", "soup", "carol"), ("gil", "full", "carol"), ("hal", "few", "carol")))]}


FREE_PAIRS = {
    ("dora", "alice"), ("dora", "baseline"), ("dora", "choir"), ("eve", "alice"), ("eve", "baseline"), ("eve", "choir"),
    ("gil", "carol"), ("gil", "fay"), ("gil", "choir"), ("hal", "carol"), ("hal", "fay"), ("hal", "choir"),
    ("choir", "student_one"), ("baseline", "alice"), ("fay", "carol"), ("choir", "alice"), ("choir", "carol")}
FREE_COLOURS = {
    "old": "c-gmm", "student_one": "c-teacher", "gmm": "c-teacher", "choir": "c-ensemble", "alice": "c-baseline",
    "carol": "c-baseline", "baseline": "c-student-full", "dora": "c-student-essence", "eve": "c-student-essence",
    "fay": "c-student-full", "gil": "c-student-essence", "hal": "c-student-essence"}
