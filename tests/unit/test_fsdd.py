"""Connected digits: any number of speakers, no take in two sets, and what is said when something is wrong."""
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from builders.corpora import make_takes

from essence_kd.corpus import fsdd
from essence_kd.corpus.channel import Condition
from essence_kd.corpus.fsdd import LEXICON, SIZES, WORDS, find_takes, plan_sessions, prepare_fsdd
from essence_kd.corpus.phones import NONSILENCE_PHONES
from essence_kd.io.data_dir import DataDir, validate_data_dir
from essence_kd.io.errors import UserError
from essence_kd.io.wave import read_wav


def by_set(sessions):
    out = {}
    for s in sessions:
        out.setdefault(s.corpus_set, []).extend((s.speaker, u) for u in s.utterances)
    return out


@pytest.mark.parametrize("count,held", [(2, 1), (3, 1), (4, 1), (6, 2), (9, 3)])
def test_speakers_and_takes_are_divided(count, held):
    speakers = [f"speaker{i}" for i in range(count)]
    takes = {s: {d: [f"{d}_{s}_{i}.wav" for i in range(50)] for d in range(10)} for s in speakers}
    sets = by_set(plan_sessions(takes, SIZES["default"], seed=1))
    who = {name: {s for s, _ in utts} for name, utts in sets.items()}
    known = set(speakers[:-held])
    assert who["eval_che"] == set(speakers[-held:]) and who["train"] == who["eval_swbd"] == known
    assert who["dev"] == known | {f"{s}x" for s in known}  # each also in another voice
    used = {name: Counter(path for _, u in utts for _, path in u) for name, utts in sets.items()}
    names = list(used)
    assert not any(set(used[a]) & set(used[b]) for a in names for b in names if a != b)
    assert len(used["train"]) == 10 * 35 * (count - held) and set(used["train"].values()) == {3}
    assert sum(used["eval_swbd"].values()) >= 2200 and sum(used["eval_che"].values()) >= 2200
    for speaker, utterance in (pair for utts in sets.values() for pair in utts):
        assert 4 <= len(utterance) <= 7 or speaker in who["dev"] and len(utterance) <= 7
        assert all(path.startswith(f"{digit}_{speaker.rstrip('x')}_") for digit, path in utterance)
        assert len({path for _, path in utterance}) == len(utterance)


@pytest.mark.parametrize("count", [2, 4])
def test_every_set_has_the_same_noise(count):
    """Kinds are as frequent as can be, their levels cover the range; babble is other speakers' training takes."""
    speakers = [f"speaker{i}" for i in range(count)]
    takes = {s: {d: [f"{d}_{s}_{i}.wav" for i in range(50)] for d in range(10)} for s in speakers}
    sessions = plan_sessions(takes, SIZES["default"], seed=3)
    train = {path for s in sessions if s.corpus_set == "train" for u in s.utterances for _, path in u}
    for name in ("train", "dev", "eval_swbd", "eval_che"):
        mine = [s for s in sessions if s.corpus_set == name]
        low, high = fsdd.CONDITIONS[name].snr_db
        kinds = Counter(s.noise for s in mine)
        assert set(kinds) == set(Condition().noises) and max(kinds.values()) - min(kinds.values()) <= 1
        for speaker in {s.speaker for s in mine}:
            assert {s.noise for s in mine if s.speaker == speaker} == set(kinds)
        for kind in kinds:
            edges = sorted(s.snr_db for s in mine if s.noise == kind)
            assert edges[0][0] == low and edges[-1][1] == pytest.approx(high)
            assert all(a[1] == pytest.approx(b[0]) for a, b in zip(edges, edges[1:]))
        for s in mine:
            assert bool(s.babble) == (s.noise == "babble")
            for voice in s.babble:
                who = {path.split("_")[1] for path in voice}
                assert len(who) == 1 and set(voice) <= train
                assert count == 2 and name != "eval_che" or s.speaker.rstrip("x") not in who


def test_other_voices_are_resampled(corpus):
    path = str(corpus / "recordings" / "3_ann_0.wav")  # a tone of 850 Hz

    def peak(voice):
        return np.abs(np.fft.rfft(voice, 16000)).argmax() / 2

    plain = fsdd._take(path)
    assert peak(plain) == pytest.approx(850, abs=3)
    for speed in fsdd.OTHER_VOICES:
        factor = float(Fraction(speed))
        voice = fsdd._take(path, speed)
        assert len(voice) == pytest.approx(len(plain) / factor, abs=1)
        assert peak(voice) == pytest.approx(850 * factor, abs=3)
        assert np.mean(voice ** 2) == pytest.approx(np.mean(plain ** 2), rel=0.05)
        assert not 0.9 <= factor <= 1.1  # training has those speeds


def test_held_out_speakers_are_chosen():
    takes = {s: {d: [f"{d}_{s}_{i}.wav" for i in range(20)] for d in range(10)} for s in "abcd"}
    sets = by_set(plan_sessions(takes, SIZES["tiny"], 1, ["b", "c"]))
    assert {s for s, _ in sets["eval_che"]} == {"b", "c"} and {s for s, _ in sets["train"]} == {"a", "d"}
    with pytest.raises(UserError, match="there is no speaker 'zoe': the folder has a b c d"):
        plan_sessions(takes, SIZES["tiny"], 1, ["zoe"])
    with pytest.raises(UserError, match="at least one must be held out and one not"):
        plan_sessions(takes, SIZES["tiny"], 1, ["a", "b", "c", "d"])
    with pytest.raises(UserError, match="at least one must be held out and one not"):
        plan_sessions({"a": takes["a"]}, SIZES["tiny"], 1)
    with pytest.raises(UserError, match="too few takes for train"):
        plan_sessions({s: {0: ["0_x_0.wav"]} for s in "ab"}, SIZES["tiny"], 1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("fsdd")
    make_takes(root / "recordings", ["ann", "bob", "eve"])
    prepare_fsdd(root, root / "data", "tiny", seed=5, nj=2)
    return root


def test_data_directories(corpus):
    out = corpus / "data"
    for name in ("train", "dev", "eval_swbd", "eval_che"):
        counts = validate_data_dir(out / name, lexicon=out / "dict" / "lexicon.txt")
        data = DataDir.load(out / name)
        assert set(data.utt2spk.values()) == ({"eve"} if name == "eval_che" else {"ann", "bob"} if name != "dev" else
                                              {"ann", "annx", "bob", "bobx"})
        assert set(" ".join(data.text.values()).split()) <= set(WORDS)
        stm = (out / name / "stm").read_text().splitlines()
        assert len(stm) == counts["utterances"] and all(line.split()[5] == "<O>" for line in stm)


def test_the_digits_are_those_of_the_text(corpus, tmp_path, monkeypatch):
    """Over a quiet line, the tone of each digit is found in the order of the transcript, inside the segment."""
    quiet = Condition(
        snr_db=(40, 40),
        noises=("hiss",),
        evenness=(0, 0),
        reverb_seconds=(0.02, 0.02),
        direct_db=(30, 30),
        low_hz=(100, 100),
        high_hz=(3700, 3700),
        tilt_db=(0, 0),
    )
    monkeypatch.setattr(fsdd, "CONDITIONS", dict.fromkeys(fsdd.CONDITIONS, quiet))
    sessions = [s for s in plan_sessions(find_takes(corpus), SIZES["tiny"], 5) if s.corpus_set == "eval_che"][:8]
    utterances = fsdd.mix_sessions(sessions, str(tmp_path))
    assert len(utterances) == sum(len(s.utterances) for s in sessions) > 20
    for utterance in utterances:
        rate, samples = read_wav(str(tmp_path / "eval_che" / f"{utterance.recording}.wav"))
        cut = samples[round(utterance.start * rate): round(utterance.end * rate)].astype(float)
        frames = np.abs(
            np.fft.rfft(np.lib.stride_tricks.sliding_window_view(cut, 400)[::80] * np.hanning(400), 4000, axis=1)
        )
        power = frames[:, [(400 + 150 * d + 20) // 2 for d in range(10)]]
        heard = power.argmax(axis=1)[power.max(axis=1) > 0.5 * power.max()]
        wanted = [WORDS.index(word) for word in utterance.words.split()]
        assert [d for i, d in enumerate(heard) if i == 0 or heard[i - 1] != d] == \
            [d for i, d in enumerate(wanted) if i == 0 or wanted[i - 1] != d]


def test_the_same_seed_gives_the_same_bytes(corpus):
    prepare_fsdd(corpus / "recordings", corpus / "again", "tiny", seed=5, nj=1)
    first, again = corpus / "data", corpus / "again"
    wavs = sorted(p.relative_to(first) for p in first.rglob("*.wav"))
    assert len(wavs) > 20 and all((first / p).read_bytes() == (again / p).read_bytes() for p in wavs)
    assert (first / "train" / "text").read_bytes() == (again / "train" / "text").read_bytes()
    prepare_fsdd(corpus / "recordings", corpus / "again", "tiny", seed=6, nj=2)
    assert (first / "train" / "text").read_bytes() != (again / "train" / "text").read_bytes()


def test_the_dictionary_uses_the_common_phones():
    assert set(LEXICON) == set(WORDS)
    assert {p for prons in LEXICON.values() for pron in prons for p in pron.split()} <= set(NONSILENCE_PHONES)


def test_folders_that_are_not_the_dataset(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder: .*--fsdd-dir"):
        find_takes(tmp_path / "nowhere")
    (tmp_path / "notes.wav").write_bytes(b"")
    with pytest.raises(UserError, match="holds no recording named DIGIT_SPEAKER_INDEX.wav"):
        find_takes(tmp_path)
    with pytest.raises(UserError, match="no size 'huge' of the fsdd corpus"):
        prepare_fsdd(tmp_path, tmp_path / "out", "huge")


def test_takes_that_are_broken(tmp_path):
    folder = make_takes(tmp_path / "r", ["ann", "bob"], takes=10, rate=16000)
    with pytest.raises(UserError, match="16000 samples per second, not 8000"):
        prepare_fsdd(folder, tmp_path / "data", "tiny")
    folder = make_takes(tmp_path / "r", ["ann", "bob"], takes=10)
    for file in folder.glob("3_ann_*.wav"):
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="3_ann_[0-9].wav: truncated"):
        prepare_fsdd(folder, tmp_path / "data", "tiny")
    assert not (tmp_path / "data" / "train").exists()


def test_sizes_have_all_sets():
    assert all(set(size.words) == {"dev", "eval_swbd", "eval_che"} for size in SIZES.values())
    assert set(fsdd.CONDITIONS) == {"train", "dev", "eval_swbd", "eval_che"}
