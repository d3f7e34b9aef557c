"""A corpus of Gaussian phones whose true alignment is known."""
import numpy as np

from essence_kd.io.tables import MatrixWriter

WORDS = {"ape": "A P", "pea": "P E", "tap": "T A P", "eat": "E T", "at": "A T", "teat": "T E T", "apt": "A P T",
         "pet": "P E T", "tea": "T E", "pat": "P A T"}
PHONES = "A E P T".split()
DIM = 13


def make_dict(path):
    path.mkdir(parents=True)
    (path / "lexicon.txt").write_text("".join(f"{w} {p}\n" for w, p in WORDS.items()) + "<unk> SPN\n")
    (path / "nonsilence_phones.txt").write_text("".join(f"{p}\n" for p in PHONES))
    (path / "silence_phones.txt").write_text("SIL\nSPN\n")
    (path / "optional_silence.txt").write_text("SIL\n")
    return path


def write_data(path, feats, text, speakers):
    """A data directory from matrices: feats.scp, cmvn.scp, text, utt2spk."""
    path.mkdir(parents=True)
    with MatrixWriter(f"ark,scp:{path}/feats.ark,{path}/feats.scp") as writer:
        for utt in sorted(feats):
            writer.write(utt, feats[utt])
    with MatrixWriter(f"ark,scp:{path}/cmvn.ark,{path}/cmvn.scp") as writer:
        for spk in sorted(set(speakers.values())):
            x = np.concatenate([feats[u] for u in feats if speakers[u] == spk]).astype(np.float64)
            writer.write(spk, np.stack([np.append(x.sum(axis=0), len(x)), np.append((x * x).sum(axis=0), 0)]))
    (path / "text").write_text("".join(f"{utt} {text[utt]}\n" for utt in sorted(feats)))
    (path / "utt2spk").write_text("".join(f"{utt} {speakers[utt]}\n" for utt in sorted(feats)))
    return path


def synthesise(rng, count, prefix=""):
    """Utterances of Gaussian phones of three states; returns (feats, text, speakers, truth).

    truth[utt] is the list of (phone or SIL, state or -1) of every frame. The states of a phone are alike, so that a
    flat start can find the phones.
    """
    bank = np.random.default_rng(99)  # the same voices for every corpus
    centre = {p: bank.normal(0, 1.5, DIM) for p in PHONES}
    mean = {(p, s): centre[p] + bank.normal(0, 0.5, DIM) for p in PHONES for s in range(3)}
    quiet = bank.normal(0, 1.5, DIM)
    offset = {f"spk{n}": bank.normal(0, 4, DIM) for n in range(3)}
    feats, text, speakers, truth = {}, {}, {}, {}
    for n in range(count):
        spk = f"spk{n % 3}"
        utt = f"{spk}-{prefix}{n:04d}"
        words = [str(w) for w in rng.choice(sorted(WORDS), rng.integers(2, 6))]
        labels = []
        for i, word in enumerate(words):
            if i == 0 or rng.random() < 0.3:
                labels += [("SIL", -1)] * int(rng.integers(8, 30))
            for phone in WORDS[word].split():
                for state in range(3):
                    labels += [(phone, state)] * int(rng.integers(2, 6))
        labels += [("SIL", -1)] * int(rng.integers(8, 30))
        clean = np.array([quiet if p == "SIL" else mean[p, s] for p, s in labels])
        feats[utt] = (clean + rng.normal(0, 1.0, clean.shape) + offset[spk]).astype(np.float32)
        text[utt], speakers[utt], truth[utt] = " ".join(words), spk, labels
    return feats, text, speakers, truth
