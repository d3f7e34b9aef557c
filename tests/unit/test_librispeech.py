"""LibriSpeech: sets and ids, words, telephone audio, and what is said of folders that lack something."""
import gzip
import shutil

import numpy as np
import pytest
import soundfile
from builders.libri import LEXICON, PARTS, make_librispeech

from essence_kd.cli.main import main
from essence_kd.corpus import librispeech as libri
from essence_kd.corpus.channel import mu_law_round_trip
from essence_kd.corpus.phones import write_dict
from essence_kd.hmm.lang import read_dict
from essence_kd.io.data_dir import DataDir, validate_data_dir
from essence_kd.io.errors import UserError
from essence_kd.io.wave import read_wav

DEV = ["20", "22"]


@pytest.fixture
def root(tmp_path):
    return make_librispeech(tmp_path / "LibriSpeech")


def prepare(root, tmp_path, **options):
    usual = {"lm_text": str(root / "lm" / "text"), "dev_speakers": DEV, "nj": 2}
    return libri.prepare_librispeech(root, tmp_path / "out", **{**usual, **options})


def refused(call, *parts):
    with pytest.raises(UserError) as error:
        call()
    for part in parts:
        assert part in str(error.value), str(error.value)


def test_sets_ids_and_audio_as_they_lie_there(root, tmp_path):
    counts = prepare(root.parent, tmp_path, lm_text=str(root / "lm" / "text"))  # the folder that holds LibriSpeech
    out = tmp_path / "out"
    assert {name: (c["utterances"], c["speakers"], c["words"]) for name, c in counts.items()} == {
        "train": (12, 3, 36), "dev": (8, 2, 24), "test_clean": (8, 2, 24)}
    assert counts["train"]["seconds"] == pytest.approx(6 * (0.6 + 0.61))
    train, dev = DataDir.load(out / "train"), DataDir.load(out / "dev")
    assert train.wav_scp["10-101-0001"] == str(root / "train-clean-5" / "10" / "101" / "10-101-0001.flac")
    assert train.text["10-100-0000"] == "TWO TWO FOUR" and train.utt2spk["11-100-0000"] == "11"
    assert set(dev.utt2spk.values()) == set(DEV) and dev.extra["spk2gender"] == {"20": "f", "22": "f"}
    assert set(DataDir.load(out / "test_clean").utt2spk.values()) == {"21", "23"}
    for name, c in counts.items():
        told = validate_data_dir(out / name, lexicon=out / "dict" / "lexicon.txt", sample_rate=16000)
        assert (told["utterances"], told["seconds"]) == (c["utterances"], pytest.approx(c["seconds"], abs=0.01))
    # zebra is in the text, six is in small letters in the lexicon; a sentence of a test set is no text
    assert (out / "lm_text").read_text() == "ONE TWO\nTHREE FOUR SIX ZEBRA\nFOUR FOUR\n"


def test_development_parts_and_test_other(tmp_path):
    parts = {**PARTS, "dev-clean": ("30",), "dev-clean-2": ("31", "32"), "test-other": ("40",)}
    root = make_librispeech(tmp_path / "L", parts)

    def speakers(**options):
        sets = libri.find_sources(root, **{"size": "mini", "lm_text": str(root / "lm" / "text"), **options}).sets
        return {name: sorted({utt.speaker for utt in utts}) for name, utts in sets.items()}

    tests = {"test_clean": list(PARTS["test-clean"]), "test_other": ["40"]}
    assert speakers() == {"train": ["10", "11", "12"], "dev": ["31", "32"], **tests}
    assert speakers(dev_speakers=["31"], eval_speakers=["23"]) == {
        "train": ["10", "11", "12"], "dev": ["31"], "test_clean": ["23"], "test_other": ["40"]}
    assert speakers(dev_speakers=["32", "20"])["test_clean"] == ["21", "22", "23"]
    shutil.rmtree(root / "dev-clean-2")
    assert speakers()["dev"] == ["30"]
    (root / "train-clean-5").rename(root / "train-clean-100")
    assert speakers(size="clean-100")["train"] == ["10", "11", "12"]


def test_tiny_takes_every_speaker_in_turn(root):
    utts = libri.read_part(root, "train-clean-5")
    kept = libri.cut(utts, 2.0)
    assert [utt.name for utt in kept] == ["10-100-0000", "11-100-0000", "12-100-0000"]
    assert len(libri.cut(utts, 0.1)) == 1 and libri.cut(utts, 1e6) == utts


def damage(folder, what):
    def flac(name):
        return folder / "train-clean-5" / name.split("-")[0] / name.split("-")[1] / f"{name}.flac"

    if what == "missing":
        flac("10-100-0000").unlink()
        flac("11-101-0001").unlink()
    elif what == "no transcript":
        shutil.copy(flac("10-100-0000"), flac("10-100-0007"))
    elif what == "no transcripts":
        (folder / "train-clean-5" / "10" / "100" / "10-100.trans.txt").unlink()
    elif what == "empty":
        flac("12-100-0001").write_bytes(b"")
    elif what == "not flac":
        flac("12-100-0001").write_text("<html>the page was not found, and this is longer than a header</html>")
    elif what == "rate":
        soundfile.write(flac("12-100-0001"), np.zeros(800, np.int16), 8000)
    elif what == "line":
        (folder / "train-clean-5" / "10" / "100" / "10-100.trans.txt").write_text("10-100-0000 ONE\n11-1-1 TWO\n")
    elif what == "names":
        (folder / "train-clean-5" / "ten").mkdir()
    elif what == "nothing":
        shutil.rmtree(folder / "train-clean-5")
        (folder / "train-clean-5").mkdir()
    elif what == "speaker":
        shutil.copytree(folder / "train-clean-5" / "12", folder / "test-clean" / "12")
    elif what == "twice":
        shutil.copytree(folder / "test-clean" / "20", folder / "dev-clean" / "20")


@pytest.mark.parametrize("what, parts", [
    ("missing", ("train-clean-5: 2 transcripts have no audio, the first is ", "/10/100/10-100-0000.flac: unpack "
                 "train-clean-5.tar.gz of openslr.org/31 again")),
    ("no transcript", ("1 recordings have no transcript, the first is ", "/10-100-0007.flac")),
    ("no transcripts", ("2 recordings have no transcript, the first is ", "/10-100-0000.flac")),
    ("empty", ("/12-100-0001.flac: is no FLAC file, or damaged: unpack its archive again",)),
    ("not flac", ("/12-100-0001.flac: is no FLAC file, or damaged",)),
    ("rate", ("/12-100-0001.flac: has 1 channels of 8000 Hz: LibriSpeech has one of 16000",)),
    ("line", ("10-100.trans.txt: line 2 is not '10-100-NUMBER WORD WORD ...'",)),
    ("names", ("/train-clean-5/ten: a folder of LibriSpeech is called by the number of a speaker or chapter",)),
    ("nothing", ("train-clean-5: holds no utterance",)),
    ("speaker", ("speaker 12 is in train and in test_clean: a test would be of a known voice",)),
    ("twice", ("utterance 20-100-0000 comes twice",)),
])
def test_damaged_folders(root, tmp_path, what, parts):
    damage(root, what)
    refused(lambda: prepare(root, tmp_path), *parts)
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named_with_where_it_is_published(root, tmp_path):
    refused(lambda: prepare(tmp_path / "none", tmp_path), "no such folder: name an unpacked LibriSpeech")
    (tmp_path / "other").mkdir()
    refused(lambda: prepare(tmp_path / "other", tmp_path), "is no LibriSpeech", "openslr.org/31, openslr.org/12")
    refused(lambda: prepare(root, tmp_path, size="huge"), "there is no size 'huge' of LibriSpeech: it has tiny, mini")
    refused(lambda: prepare(root, tmp_path, size="full-960"), "size full-960 lacks train-clean-100.tar.gz of "
            "openslr.org/12, train-clean-360.tar.gz of openslr.org/12, train-other-500.tar.gz of openslr.org/12")
    refused(lambda: prepare(root, tmp_path, dev_speakers=[]),
            "lacks dev-clean-2.tar.gz of openslr.org/31 or dev-clean.tar.gz of openslr.org/12 (or name speakers")
    refused(lambda: prepare(root, tmp_path, lm_text=""), "lacks 3-gram.pruned.3e-7.arpa.gz of openslr.org/11 (or text "
            "for a language model with --lm-text FILE)")
    for option in ("lm_text", "lexicon"):
        refused(lambda: prepare(root, tmp_path, **{option: "/none"}), f"--{option}".replace("_", "-") + ": there is no")
    (root / "lm" / "librispeech-lexicon.txt").unlink()
    shutil.rmtree(root / "test-clean")
    refused(lambda: prepare(root, tmp_path), "lacks test-clean.tar.gz of openslr.org/12, librispeech-lexicon.txt of "
            "openslr.org/11 (or another lexicon with --lexicon FILE)")


@pytest.mark.parametrize("options, message", [
    ({"dev_speakers": ["20", "99"]}, "--dev-speakers: there is no speaker '99' in test-clean"),
    ({"eval_speakers": ["10"]}, "--eval-speakers: there is no speaker '10' in test-clean"),
    ({"eval_speakers": ["20"]}, "speaker 20 is named by --dev-speakers and by --eval-speakers"),
    ({"dev_speakers": list(PARTS["test-clean"])}, "all of its speakers are in dev"),
    ({"transcribed": 0.0}, "--transcribed is 0, but must be more than 0 and at most 1"),
    ({"transcribed": 0.99}, "--transcribed 0.99 leaves no speaker of 3 without transcripts"),
])
def test_options_that_make_no_sense(root, tmp_path, options, message):
    refused(lambda: prepare(root, tmp_path, **options), message)


def test_headers_tell_what_libsndfile_tells(root, tmp_path):
    for path in root.rglob("*.flac"):
        assert libri.flac_seconds(path) == soundfile.info(path).duration


def test_a_lexicon_of_cmudicts_kind(tmp_path):
    path = tmp_path / "lexicon.txt"
    path.write_text(LEXICON)
    assert libri.read_lexicon(path) == {"ONE": ["W AH1 N"], "TWO": ["T UW1"], "THREE": ["TH R IY1"],
                                        "FOUR": ["F AO1 R", "F ER0"], "SIX": ["S IH1 K S"]}
    for text, message in (("ONE W AH1 N\nTWO\n", "line 2: 'TWO' has no phones"),
                          ("ONE 0.5 W AH1 N\n", "the phone '0.5', which is not as AH or AH0"),
                          (";;; ONE W\n", "holds no word")):
        path.write_text(text)
        refused(lambda: libri.read_lexicon(path), message)


def test_stress_shares_the_roots_of_trees_as_in_kaldis_recipe(tmp_path):
    write_dict(tmp_path, {"A": ["AH0", "EY1"], "AMID": ["AH0 M IH1 D", "AH1 M IH0 D"]}, libri.OOV)
    assert (tmp_path / "nonsilence_phones.txt").read_text() == "AH0 AH1\nD\nEY1\nIH0 IH1\nM\n"
    assert (tmp_path / "extra_questions.txt").read_text() == "AH0 IH0\nAH1 EY1 IH1\n"
    assert "<UNK> SPN\n" in (tmp_path / "lexicon.txt").read_text()
    read_dict(tmp_path)


def test_text_of_a_language_model(tmp_path):
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"one  two\n\nthree\n"))
    assert list(libri.read_sentences(path)) == ["ONE TWO", "THREE"]
    assert list(libri.read_sentences(path, 1)) == ["ONE TWO"]
    path.write_bytes(path.read_bytes()[:-6])
    refused(lambda: list(libri.read_sentences(path)), "not a whole gzip file")
    path.write_text("\n")
    refused(lambda: list(libri.read_sentences(path)), "holds no sentence")
    path.write_bytes(b"\xff\xfe\n")
    refused(lambda: list(libri.read_sentences(path)), "is not UTF-8 text")


def test_what_openslr_11_has_is_taken(root, tmp_path):
    for name in ("3-gram.pruned.1e-7.arpa.gz", "3-gram.pruned.3e-7.arpa.gz", "4-gram.arpa.gz"):
        (root / "lm" / name).write_bytes(name.encode())
    prepare(root, tmp_path, lm_text="")
    assert (tmp_path / "out" / "lm_arpa.gz").read_bytes() == b"3-gram.pruned.3e-7.arpa.gz"
    assert (tmp_path / "out" / "rescore_arpa.gz").read_bytes() == b"4-gram.arpa.gz"
    assert not (tmp_path / "out" / "lm_text").exists()


def test_words_outside_the_lexicon_are_counted_and_pronounced_on_request(root, tmp_path, capsys):
    transcript = root / "train-clean-5" / "10" / "100" / "10-100.trans.txt"
    transcript.write_text(transcript.read_text().replace("TWO", "BUTTER"))
    arguments = ["prepare-librispeech", "--lm-text", str(root / "lm" / "text"), "--dev-speakers", "20", str(root),
                 str(tmp_path / "out")]
    assert main(arguments) == 0
    told = capsys.readouterr().err
    assert "12 utterances, 36 words, 3 speakers, 0.1 min, 2 words (1 different; most often: BUTTER 2) outside" in told
    assert "with --g2p true eSpeak NG pronounces words of training that the lexicon lacks" in told
    assert libri.pronounce(["BUTTER", "SEVEN"], frozenset("B AH0 AH1 T ER1 S EH1 V N".split())) == {
        "BUTTER": ["B AH1 T ER1"], "SEVEN": ["S EH1 V AH0 N"]}
    assert libri.pronounce(["SEVEN"], frozenset("S EH V AH N".split())) == {"SEVEN": ["S EH V AH N"]}
    assert libri.pronounce(["ZEBRA"], frozenset("S EH V AH N".split())) == {}
    assert main([*arguments, "--g2p", "true"]) == 0
    assert "36 words, 3 speakers, 0.1 min, 2 words" in capsys.readouterr().err  # AH1 T ER1 B: the lexicon has no B
    with (root / "lm" / "librispeech-lexicon.txt").open("a") as lexicon:
        lexicon.write("BIRD B ER1 D\n")
    assert main([*arguments, "--g2p", "true"]) == 0
    assert "0 words outside the lexicon" in capsys.readouterr().err
    assert "BUTTER B AH1 T ER1\n" in (tmp_path / "out" / "dict" / "lexicon.txt").read_text()


def test_speakers_without_transcripts(root, tmp_path):
    counts = prepare(root, tmp_path, transcribed=0.33)
    assert counts["train"]["speakers"] == 1 and counts["untranscribed"]["speakers"] == 2
    assert not (tmp_path / "out" / "untranscribed" / "text").exists()
    train, rest = (set(DataDir.load(tmp_path / "out" / name).utt2spk.values()) for name in ("train", "untranscribed"))
    assert train | rest == {"10", "11", "12"} and not train & rest


def test_telephone_is_the_same_speech_at_8_khz(root, tmp_path):
    path = root / "test-clean" / "21" / "100" / "21-100-0000.flac"
    rng = np.random.default_rng(0)
    tone = 6000 * np.sin(2 * np.pi * 1000 / 16000 * np.arange(16001)) + rng.normal(scale=30, size=16001)
    soundfile.write(path, tone.astype(np.int16), 16000)
    prepare(root, tmp_path, telephone=True)
    data = DataDir.load(tmp_path / "out" / "test_clean")
    for name, file in data.wav_scp.items():
        rate, samples = read_wav(file)
        original = soundfile.info(next(root.rglob(f"{name}.flac"))).frames
        assert rate == 8000 and len(samples) == (original + 1) // 2 and (mu_law_round_trip(samples) == samples).all()
    heard = np.abs(np.fft.rfft(read_wav(data.wav_scp["21-100-0000"])[1]))
    assert abs(np.argmax(heard) / len(heard) * 4000 - 1000) < 5
    first = {file.name: file.read_bytes() for file in (tmp_path / "out" / "wav").rglob("*.wav")}
    prepare(root, tmp_path, telephone=True, nj=1)
    assert first == {file.name: file.read_bytes() for file in (tmp_path / "out" / "wav").rglob("*.wav")}
    assert len(first) == 28


def test_a_file_that_ends_too_early_is_found_when_it_is_read(root, tmp_path, capsys):
    """Its header is whole, so that stage 0 takes it; features of it are refused."""
    flac = root / "train-clean-5" / "11" / "100" / "11-100-0001.flac"
    flac.write_bytes(flac.read_bytes()[:-4000])
    prepare(root, tmp_path)
    capsys.readouterr()
    assert main(["make-feats", "--sample-rate", "16000", str(tmp_path / "out" / "train")]) == 1
    told = capsys.readouterr().err
    assert f"recording 11-100-0001: {flac}: " in told and "truncated" in told


@pytest.mark.sox
def test_kaldi_has_commands(root, tmp_path):
    prepare(root, tmp_path, pipes=True)
    for name, source in list(DataDir.load(tmp_path / "out" / "dev").wav_scp.items())[:2]:
        assert source.endswith(" |") and read_wav(source)[0] == 16000
        path = next(root.rglob(f"{name}.flac"))
        assert (read_wav(source)[1] == read_wav(str(path))[1]).all()
