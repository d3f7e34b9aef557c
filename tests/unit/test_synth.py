"""The mini corpus: its text, its voices and lines, its dictionary, and that the same seed gives the same bytes."""
import hashlib
import json
import random

import numpy as np
import pytest
from builders.corpora import MICRO, make_mini

from essence_kd.corpus import channel
from essence_kd.corpus.channel import Condition
from essence_kd.corpus.grammar import GENERAL, Grammar
from essence_kd.corpus.phones import NONSILENCE_PHONES, make_lexicon, to_phones
from essence_kd.corpus.synth import (LEXICON_ACCENTS, POOLS, POPULATIONS, SETS, SIZES, TESTS, plan_calls, plan_pools,
                                     synthesize)
from essence_kd.io.data_dir import DataDir, validate_data_dir
from essence_kd.io.errors import UserError
from essence_kd.io.frames import SAMPLE_RATE
from essence_kd.io.parallel import run_jobs
from essence_kd.io.wave import read_wav


# ------------------------------------------------------------------------------------------------------------ text

def test_every_topic_can_say_everything():
    grammar, rng = Grammar(), random.Random(0)
    for topic in grammar.topics:
        for symbol in ("say", "question", "reply", "backchannel", "hello", "topic", "bye"):
            for _ in range(60):
                sentence = grammar.sentence(rng, topic, symbol, 0.1, 0.3)
                assert sentence and sentence == " ".join(sentence.split())
                assert set(sentence) <= set("abcdefghijklmnopqrstuvwxyz '-"), sentence


def test_every_symbol_is_defined_and_used():
    import re

    grammar = Grammar()
    used = set(
        re.findall(r"<(\w+)>", GENERAL + " ".join(" ".join(a) for t in grammar.topics.values() for a in t.values()))
    )
    for rules in grammar.topics.values():
        assert used <= set(rules) | set(grammar.general)
    assert set(grammar.general) - used == {"say", "question", "backchannel", "reply", "hello", "topic", "bye"}


@pytest.mark.parametrize("size", ["tiny", "default"])
@pytest.mark.parametrize("seed", [1, 7])
def test_no_test_sentence_and_no_unknown_word(size, seed):
    calls, extra = plan_calls(seed, SIZES[size])
    texts = {name: [words for c in calls if c.corpus_set == name for _, words, _ in c.turns] for name in SETS}
    vocabulary = {word for words in texts["train"] for word in words.split()}
    if size == "default":
        assert 500 <= len(vocabulary) <= 1500
    for name in SETS[1:]:
        assert not set(texts[name]) & (set(texts["train"]) | set(extra))
        for other in SETS[1:]:
            assert name == other or not set(texts[name]) & set(texts[other])
        assert {word for words in texts[name] for word in words.split()} <= vocabulary
    assert {word for line in extra for word in line.split()} <= vocabulary
    for name in SETS:
        wanted = SIZES[size].words[name]
        assert wanted <= sum(len(words.split()) for words in texts[name]) <= wanted + 120


def test_speakers_are_disjoint_and_many():
    calls, _ = plan_calls(1, SIZES["default"])
    people = {name: {s for c in calls if c.corpus_set == name for s in c.sides} for name in SETS}
    names = [s.name for group in people.values() for s in group]
    assert len(names) == len(set(names)) >= 60
    variants = {name: {s.variant for s in group} for name, group in people.items()}
    assert all(not variants[a] & variants[b] for a in SETS for b in SETS if a != b)
    assert not {s.accent for s in people["eval_che"]} & {s.accent for s in people["train"]}
    assert {s.accent for s in people["eval_swbd"]} <= {s.accent for s in people["train"]}
    for group in people.values():
        assert {s.gender for s in group} == {"m", "f"}
    for call in calls:
        assert call.sides[0] != call.sides[1] and {side for side, _, _ in call.turns} == {0, 1}


def _phones_of(sentences):
    from essence_kd.corpus.espeak import Espeak
    from essence_kd.corpus.phones import count_pronunciations

    return count_pronunciations(Espeak(), sentences, sorted(set(LEXICON_ACCENTS)))


def test_every_seed_can_be_spoken():
    sentences = {"once in a i mean while"}  # of seed 3: a pause that eSpeak names
    for seed in range(1, 51):
        calls, _ = plan_calls(seed, SIZES["tiny"])
        sentences |= {words for call in calls for _, words, _ in call.turns}
    counts = run_jobs(_phones_of, [(sorted(sentences),)])[0]  # raises where a phoneme is not known
    assert len(counts) > 700 and all(counts.values())


def test_another_eval_seed_draws_other_tests_alone():
    first, extra = plan_calls(1, SIZES["default"])
    other, same = plan_calls(1, SIZES["default"], eval_seed=7)
    trained = [call for call in first if call.corpus_set in ("train", "dev")]
    assert trained == [call for call in other if call.corpus_set in ("train", "dev")] and extra == same
    for name in TESTS:
        a, b = ([call for call in calls if call.corpus_set == name] for calls in (first, other))
        assert not {call.seed for call in a} & {call.seed for call in b}
        assert not {side for call in a for side in call.sides} & {side for call in b for side in call.sides}
        said = [{words for call in calls for _, words, _ in call.turns} for calls in (a, b)]
        assert len(said[0] & said[1]) < 0.1 * len(said[0])
        for calls in (a, b):
            assert len({side for call in calls for side in call.sides}) == SIZES["default"].speakers[name] >= 32


def test_another_seed_another_corpus():
    first, _ = plan_calls(1, SIZES["tiny"])
    again, _ = plan_calls(1, SIZES["tiny"])
    other, _ = plan_calls(2, SIZES["tiny"])
    assert first == again and first[0].turns != other[0].turns


# ------------------------------------------------------------------------------------------------------------ line

def test_mu_law():
    every = np.arange(-32768, 32768).astype(np.int16)
    once = channel.mu_law_round_trip(every)
    assert (channel.mu_law_round_trip(once) == once).all()
    assert len(np.unique(once)) == 255  # 256 codes, two of them zero
    assert (np.diff(once.astype(int)) >= 0).all()
    loud = np.abs(every.astype(int)) > 1000
    error = np.abs(once.astype(int) - every)[loud] / np.abs(every[loud].astype(int))
    assert error[np.abs(every[loud].astype(int)) < 32000].max() < 0.035
    # G.711: the largest code decodes to 32124, the smallest steps are 8 apart around zero
    assert once.max() == 32124 and once.min() == -32124 and sorted(set(np.abs(once.astype(int))))[:4] == [0, 8, 16, 24]


def tone(hz, seconds=1.0):
    return np.sin(2 * np.pi * hz * np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE).astype(np.float32)


def test_the_telephone_band():
    line = channel.telephone_filter(300, 3400, 0.0)
    gain = {
        hz: np.sqrt(2 * np.mean(np.convolve(tone(hz), line, "valid") ** 2))
        for hz in (50, 120, 500, 1000, 2500, 3200, 3900)
    }
    assert gain[50] < 0.02 and gain[120] < 0.1 and gain[3900] < 0.05
    assert all(0.9 < gain[hz] < 1.1 for hz in (500, 1000, 2500, 3200))
    tilted = channel.telephone_filter(300, 3400, -12.0)
    low, high = (np.sqrt(np.mean(np.convolve(tone(hz), tilted, "valid") ** 2)) for hz in (500, 3000))
    assert 20 * np.log10(high / low) == pytest.approx(-12, abs=0.5)


def test_a_room_decays_as_asked():
    response = channel.room_response(np.random.default_rng(0), 0.4, 6.0).astype(np.float64)
    assert response[0] == 1 and 10 * np.log10(1 / np.sum(response[1:] ** 2)) == pytest.approx(6, abs=0.01)
    energy = np.cumsum(response[::-1] ** 2)[::-1]  # Schroeder's backward integral
    level = 10 * np.log10(energy / energy[30])
    slope = np.polyfit(np.arange(200, 1200) / SAMPLE_RATE, level[200:1200], 1)[0]
    assert -60 / slope == pytest.approx(0.4, rel=0.15)


@pytest.mark.parametrize("kind", Condition().noises)
def test_noises_have_unit_power(kind):
    voices = [tone(400), tone(900, 0.3)]
    sound = channel.noise(np.random.default_rng(0), kind, 3 * SAMPLE_RATE, voices)
    assert (
        sound.dtype == np.float32 and len(sound) == 3 * SAMPLE_RATE and np.mean(sound**2) == pytest.approx(1, abs=1e-3)
    )
    assert (sound == channel.noise(np.random.default_rng(0), kind, 3 * SAMPLE_RATE, voices)).all()


def test_a_recording_has_the_wanted_noise_and_level():
    rng = np.random.default_rng(1)
    voice = np.convolve(rng.standard_normal(4 * SAMPLE_RATE), np.ones(3) / 3, "same").astype(np.float32)
    voice[2 * SAMPLE_RATE:] = 0
    active = np.arange(len(voice)) < 2 * SAMPLE_RATE
    condition = Condition(
        snr_db=(10, 10), noises=("hiss",), reverb_seconds=(0.05, 0.05), direct_db=(20, 20), level_db=(-25, -25)
    )
    samples, drawn = channel.record(rng, condition, voice, active)
    assert samples.dtype == np.int16 and len(samples) == len(voice) and drawn["noise"] == "hiss"
    clear = np.diff(samples.astype(float), prepend=0)
    with_speech, without = np.mean(clear[1000 : 2 * SAMPLE_RATE - 1000] ** 2), np.mean(
        clear[2 * SAMPLE_RATE + 1000 :] ** 2
    )
    assert 10 * np.log10(with_speech / without - 1) == pytest.approx(10, abs=1)
    level = 10 * np.log10(np.mean((samples[: 2 * SAMPLE_RATE] / 32768.0) ** 2))
    assert -26 < level < -22.5


def test_the_equalizer_evens_out_a_dull_voice():
    rng = np.random.default_rng(0)
    dull = np.convolve(rng.standard_normal(SAMPLE_RATE), np.hanning(9), "same").astype(np.float32)

    def brightness(x):
        power = np.abs(np.fft.rfft(x)) ** 2
        return 10 * np.log10(power[2000:3000].mean() / power[300:800].mean())

    changed = np.convolve(dull, channel.equalizer(dull, 1.0))
    assert brightness(changed) > brightness(dull) + 10
    flat = np.convolve(dull, channel.equalizer(dull, 0.0))
    assert brightness(flat) == pytest.approx(brightness(dull), abs=0.5)


# ---------------------------------------------------------------------------------------------------------- phones

def test_phones_of_words():
    assert to_phones(["k", "'A@"], "en-us") == ("K", "AA", "R")
    assert to_phones(["k", "'A@"], "en-gb-x-rp") == ("K", "AA")
    assert to_phones(["f", "'A:", "D", "3", "r-"], "en-us") == ("F", "AA", "DH", "ER", "R")
    assert to_phones(["b", "'V", "?", "n-", "", ":", ""], "en-us") == ("B", "AH", "T", "AX", "N")
    assert to_phones(["m", "'i:", "n", "", "!"], "en-gb-x-rp") == ("M", "IY", "N")  # _! is a pause
    with pytest.raises(UserError, match="phoneme 'q9'"):
        to_phones(["q9"], "en-us")
    assert 38 <= len(NONSILENCE_PHONES) <= 44


def test_the_lexicon_keeps_what_is_said_often():
    from collections import Counter

    counts = {
        "a": Counter({("AX",): 95, ("EY",): 5}),
        "b": Counter({("B", "IY"): 50, ("B", "EH"): 30, ("B", "IH"): 20, ("B",): 19}),
    }
    assert make_lexicon(counts) == {"a": ["AX"], "b": ["B IY", "B EH", "B IH"]}
    assert make_lexicon({"and": Counter({("AE", "N", "D"): 1})}) == {"and": ["AE N D", "AX N"]}


# ---------------------------------------------------------------------------------------------------------- speech


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("mini")
    counts = make_mini(out)
    make_mini(out / "again", nj=1)
    return out, counts


def test_data_directories(corpus):
    out, counts = corpus
    for name in SETS:
        found = validate_data_dir(out / name, lexicon=out / "dict" / "lexicon.txt")
        assert (found["words"], found["utterances"], found["oov_words"]) == (
            counts[name]["words"],
            counts[name]["utterances"],
            {},
        )
        data = DataDir.load(out / name)
        assert data.extra["reco2file_and_channel"] == {reco: f"{reco[:-2]} {reco[-1]}" for reco in data.wav_scp}
        stm = [line.split(None, 6) for line in (out / name / "stm").read_text().splitlines()]
        assert [(s[0], s[1], float(s[3])) for s in stm] == sorted((s[0], s[1], float(s[3])) for s in stm)
        assert sorted((f"{s[0]}-{s[1]}", float(s[3]), float(s[4]), s[6]) for s in stm) == \
            sorted((*data.segments[utt], text) for utt, text in data.text.items())
        per_side = {}
        for reco, start, end in data.segments.values():
            per_side.setdefault(reco, []).append((start, end))
        assert all(a[1] <= b[0] for spans in per_side.values() for a, b in zip(sorted(spans), sorted(spans)[1:]))


def test_speech_is_where_the_segments_say(corpus):
    out, _ = corpus
    data = DataDir.load(out / "train")
    ratios = []
    for reco in data.wav_scp:
        rate, samples = read_wav(data.wav_scp[reco])
        assert rate == SAMPLE_RATE and np.mean(np.abs(samples.astype(int)) >= 32124) < 1e-3
        inside = np.zeros(len(samples), bool)
        for r, start, end in data.segments.values():
            if r == reco:
                inside[int(start * rate): int(end * rate)] = True
        power = samples.astype(float) ** 2
        ratios.append(10 * np.log10(power[inside].mean() / power[~inside].mean()))
        spectrum = np.abs(np.fft.rfft(samples[: 8 * 4096].reshape(-1, 4096) * np.hanning(4096), axis=1)) ** 2
        assert (
            10 * np.log10(spectrum[:, 200:1600].mean() / spectrum[:, 1900:].mean()) > 15
        )  # 3.7 kHz and more: mu-law's noise
    assert min(ratios) > 1 and np.median(ratios) > 5
    for utt, words in data.text.items():
        _, start, end = data.segments[utt]
        assert 0.08 < (end - start) / len(words.split()) < 1.5, utt


def _tree(path):
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes().replace(str(path).encode(), b"")).hexdigest()
            for p in sorted(path.rglob("*")) if p.is_file() and "again" not in p.relative_to(path).parts}


def test_the_same_seed_gives_the_same_bytes(corpus):
    out, _ = corpus
    assert _tree(out) == _tree(out / "again")
    assert sum(name.endswith(".wav") for name in _tree(out)) >= 10


@pytest.fixture(scope="module")
def pools(corpus):
    """(corpus, counts): the corpus when it has got audio without transcripts."""
    out = corpus[0] / "again"  # whose tests are done
    before = dict(_tree(out))
    counts = make_mini(out, untranscribed=True)
    assert {name: digest for name, digest in _tree(out).items() if "untranscribed" not in name} == before
    return out, counts


@pytest.mark.parametrize("name", POOLS)
def test_audio_without_transcripts_comes_in_two_renderings(pools, name):
    out, counts = pools
    noisy, clean = (DataDir.load(out / n) for n in (name, f"{name}_clean"))
    assert counts[name] == counts[f"{name}_clean"] and counts[name]["words"] >= 80
    assert noisy.segments == clean.segments and noisy.utt2spk == clean.utt2spk and not noisy.text and not clean.text
    assert not (out / name / "stm").exists()
    for data in (noisy, clean):
        validate_data_dir(data.path, need_text=False, apart_from=[out / "dev"], no_sentence_of=[out / n for n in TESTS])
    differences = []
    for reco, place in noisy.wav_scp.items():
        (_, a), (_, b) = read_wav(place), read_wav(clean.wav_scp[reco])
        assert len(a) == len(b)
        silent = np.ones(len(a), bool)
        for r, start, end in noisy.segments.values():
            if r == reco:
                silent[int(start * SAMPLE_RATE): int(end * SAMPLE_RATE) + 3000] = False
        differences.append(10 * np.log10((a[silent].astype(float) ** 2).mean() / (b[silent].astype(float) ** 2).mean()))
    # 15 dB less noise; the reverberation, of which eval_che has more, is the same
    assert all((12 if name == "untranscribed_swbd" else 3) < d < 16 for d in differences)


def test_audio_without_transcripts_says_what_no_test_says():
    size = SIZES["tiny"]
    calls = plan_pools(1, size)
    assert calls == plan_pools(1, size, eval_seed=7)  # and so it stays for another draw of tests
    others, extra = plan_calls(1, size, 7)
    known = {text for call in others for _, text, _ in call.turns} | set(extra)
    names = {s.name for call in others for s in call.sides}
    for pool, population in POOLS.items():
        mine = [call for call in calls if call.corpus_set == pool]
        said = [words for call in mine for _, words, _ in call.turns]
        assert size.pool[0] <= sum(len(text.split()) for text in said) <= size.pool[0] + 120
        assert not {text for text in said if len(text.split()) >= 3} & known
        people = {side for call in mine for side in call.sides}
        assert len(people) == size.pool[1] and not {s.name for s in people} & names
        names |= {s.name for s in people}
        assert {s.accent for s in people} <= set(population.accents)
        variants = set(POPULATIONS["train"].women + POPULATIONS["train"].men)
        assert {s.variant for s in people} <= variants  # no voice of a test set
    assert len({call.name for call in calls}) == len(calls)


def test_dictionary_and_lm_text(corpus):
    out, _ = corpus
    lexicon = [line.split() for line in (out / "dict" / "lexicon.txt").read_text().splitlines()]
    phones = (out / "dict" / "nonsilence_phones.txt").read_text().split()
    assert {p for entry in lexicon for p in entry[1:]} == set(phones) | {"SPN"} and set(phones) <= set(
        NONSILENCE_PHONES
    )
    assert (out / "dict" / "silence_phones.txt").read_text() == "SIL\nSPN\n"
    assert (out / "dict" / "optional_silence.txt").read_text() == "SIL\n"
    assert len({tuple(entry) for entry in lexicon}) == len(lexicon)
    words = {entry[0] for entry in lexicon} - {"<unk>"}
    train = DataDir.load(out / "train").text.values()
    assert words == {word for text in train for word in text.split()}
    lines = (out / "lm_text").read_text().splitlines()
    assert len(lines) == len(train) + MICRO.lm_sentences and set(lines) >= set(train)
    people = json.loads((out / "speakers.json").read_text())
    assert {p["set"] for p in people.values()} == set(SETS)


def _variants():
    from essence_kd.corpus.espeak import Espeak

    espeak = Espeak()
    bad = []
    for population in POPULATIONS.values():
        for accent in population.accents:
            espeak.set_voice(accent)
        for variant in (*population.women, *population.men):
            espeak.set_voice("en-us", variant)
            samples = espeak.speak("my uncle bought a house near the lake")
            if len(samples) < 20000 or np.abs(samples.astype(int)).max() >= 32767:
                bad.append(variant)
    for accent, variant in (("en-us", "nobody"), ("xx-yy", "m3")):
        with pytest.raises(UserError, match=accent if variant == "m3" else "no voice variant 'nobody'"):
            espeak.set_voice(accent, variant)
    return bad


def test_every_voice_exists_and_does_not_clip():
    assert run_jobs(_variants, [()]) == [[]]


def test_an_unknown_size(tmp_path):
    with pytest.raises(UserError, match="no size 'huge' of the mini corpus: it has tiny, default, full"):
        synthesize(tmp_path / "x", "huge")
    assert not (tmp_path / "x").exists()
