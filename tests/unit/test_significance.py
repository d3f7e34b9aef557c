"""Bootstrap and matched-pair tests: exact small cases, coverage, and agreement with NIST's sc_stats."""
from __future__ import annotations

import math
import random
import re
import subprocess

import numpy as np
import pytest

from essence_kd.io.errors import UserError
from essence_kd.score import hub5, significance, wer

SCLITE = hub5.find_sclite()


def test_group_sums_keep_the_order_of_appearance():
    sums = significance.group_sums(np.array([[1, 10], [2, 20], [4, 40]]), ["b", "a", "b"])
    assert sums.tolist() == [[5.0, 50.0], [2.0, 20.0]]


def test_bootstrap_is_seeded_paired_and_keeps_groups_together():
    values = np.stack([np.arange(40), np.arange(40) + 7, np.ones(40)], axis=1)
    groups = [i // 4 for i in range(40)]
    first = significance.bootstrap_sums(values, groups, draws=500, seed=3)
    assert np.array_equal(first, significance.bootstrap_sums(values, groups, draws=500, seed=3))
    assert not np.array_equal(first, significance.bootstrap_sums(values, groups, draws=500, seed=4))
    assert np.all(first[:, 2] == 40)                         # ten groups of four are drawn ten times
    assert np.all(first[:, 1] - first[:, 0] == 280)          # both columns see the same draws
    assert len(set(first[:, 0] % 4)) == 1                    # whole groups: sums of 16 g + 6


def compare(errors_a, errors_b, words, groups=None, **options):
    """Two systems on the same utterances."""
    table = np.stack([errors_a, errors_b, words], axis=1)
    a, b, total = significance.bootstrap_sums(table, groups, **options).T
    return significance.difference(100 * (a - b) / total, 100 * (table[:, 0] - table[:, 1]).sum() / table[:, 2].sum())


def test_bootstrap_matches_the_standard_error():
    rng = np.random.default_rng(0)
    a = rng.poisson(2.0, 400)
    b = rng.poisson(2.2, 400)
    words = np.full(400, 10)
    found = compare(a, b, words, draws=20000, seed=1)
    error = 100.0 * np.std((a - b) / 10.0) / math.sqrt(400)
    assert found.diff == pytest.approx(100.0 * (a.sum() - b.sum()) / 4000)
    assert found.low == pytest.approx(found.diff - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(found.diff + 1.96 * error, abs=0.15 * error)
    z = abs(found.diff) / error
    assert found.p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.02)


def test_dependent_utterances_widen_the_interval():
    rng = np.random.default_rng(1)
    speaker = np.repeat(np.arange(20), 20)
    gain = rng.normal(0, 2, 20)[speaker]                      # what one system gains depends on the speaker alone
    a, b = 10 + gain, np.full(400, 10.0)
    words = np.full(400, 50)
    alone = compare(a, b, words, seed=1, draws=2000)
    grouped = compare(a, b, words, list(speaker), seed=1, draws=2000)
    assert grouped.high - grouped.low > 3 * (alone.high - alone.low)


def test_equal_systems_do_not_differ():
    errors = [1, 0, 3, 2]
    found = compare(errors, errors, [5, 5, 5, 5], draws=200)
    assert (found.diff, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_a_set_without_utterances_is_refused():
    with pytest.raises(UserError, match="no utterance"):
        significance.bootstrap_sums(np.zeros((0, 2)))


def segments(ref, hyp_a, hyp_b, **options):
    return significance.segment_errors(wer.align(ref.split(), hyp_a.split()), wer.align(ref.split(), hyp_b.split()),
                                       **options)


@pytest.mark.parametrize("hyp_a, hyp_b, expected", [
    ("a b c d e f g h", "a b c d e f g h", []),
    ("a x c d e f g h", "a b c d e x g h", [(1, 0), (0, 1)]),      # two right words part the errors
    ("a x c d e f g h", "a b c x e f g h", [(1, 1)]),              # one does not
    ("a x c d e f g h", "a b c d y e f g h", [(1, 0), (0, 1)]),
    ("a x c y d e f g h", "a b c d e f g h", [(2, 0)]),            # an insertion parts the right words
    ("x b c d e f g h", "a b c d e f g h y", [(1, 0), (0, 1)]),    # ends of the utterance bound segments too
    ("", "a b c d e f g h", [(8, 0)]),
])
def test_segments_of_the_matched_pair_test(hyp_a, hyp_b, expected):
    assert segments("a b c d e f g h", hyp_a, hyp_b) == expected


def test_matched_pairs_statistic():
    found = significance.matched_pairs([(1, 0), (2, 0), (0, 1), (1, 1), (3, 1)])
    diffs = np.array([1, 2, -1, 0, 2])
    z = diffs.mean() / (diffs.std(ddof=1) / math.sqrt(5))
    assert (found.segments, found.mean) == (5, pytest.approx(0.8))
    assert found.z == pytest.approx(z)
    assert found.p == pytest.approx(math.erfc(z / math.sqrt(2)))


def test_matched_pairs_without_evidence():
    assert significance.matched_pairs([]).p == 1.0
    assert significance.matched_pairs([(3, 0)]).p == 1.0
    assert significance.matched_pairs([(1, 1), (2, 2)]).p == 1.0
    assert significance.matched_pairs([(1, 0), (1, 0)]).p == 0.0


@pytest.mark.sclite
def test_matched_pairs_agree_with_sc_stats(tmp_path):
    """z, segments and mean of two noisy copies of 300 sentences, from sclite's alignments on both sides."""
    rng = random.Random(11)
    refs = {f"s{i % 5}-{i:03d}": [rng.choice("abcdefghij") for _ in range(rng.randint(1, 15))] for i in range(300)}

    def noisy(words, rate):
        out = []
        for word in words:
            kind = rng.random() / rate
            out += [] if kind < 0.3 else [rng.choice("abcdefghij")] if kind < 0.8 else [word]
            out += [rng.choice("abcdefghij")] if rng.random() < rate / 5 else []
        return out

    hyps = [{u: noisy(w, rate) for u, w in refs.items()} for rate in (0.2, 0.26)]
    for name, texts in (("ref", refs), ("one", hyps[0]), ("two", hyps[1])):
        (tmp_path / name).write_text("".join(f"{' '.join(words)} ({utt})\n" for utt, words in texts.items()))
    sgml = b""
    for name in ("one", "two"):
        subprocess.run([str(SCLITE / "sclite"), "-r", "ref", "trn", "-h", name, "trn", name, "-i", "swb", "-o", "sgml",
                        "-n", name], cwd=tmp_path, check=True, capture_output=True)
        sgml += (tmp_path / f"{name}.sgml").read_bytes()
    report = subprocess.run([str(SCLITE / "sc_stats"), "-p", "-t", "mapsswe", "-v", "-n", "-"], cwd=tmp_path,
                            input=sgml, check=True, capture_output=True).stdout.decode()
    said = re.search(r"# segs: (\d+)\).*\(mean:\s*(-?[\d.]+)\).*\(Z Stat:\s*(-?[\d.]+)\)", report)

    aligned = []
    for name in ("one", "two"):
        alignments = {}
        for path in re.finditer(r'<PATH id="\((.*?)\)"[^\n]*>\n(.*)\n</PATH>', (tmp_path / f"{name}.sgml").read_text()):
            pairs = re.findall(r'(?:^|:)[CSDI],(?:"([^"]*)")?,(?:"([^"]*)")?', path.group(2))
            alignments[path.group(1)] = [(r or None, h or None) for r, h in pairs]
        aligned.append(alignments)
    ours = significance.matched_pairs([s for utt in aligned[0]
                                       for s in significance.segment_errors(aligned[0][utt], aligned[1][utt])])
    assert ours.segments == int(said.group(1))
    assert ours.mean == pytest.approx(float(said.group(2)), abs=0.0006)
    assert ours.z == pytest.approx(float(said.group(3)), abs=0.0006)
