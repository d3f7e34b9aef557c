"""Decision trees: against a brute-force build, what they mean, and their files."""
import itertools

import numpy as np
import pytest
from builders.graphs import make_lang

from essence_kd.hmm.lang import read_roots
from essence_kd.hmm.tree import STATE, Split, Table, Tree, leaves, monophone_tree, possible_pdfs, read_tree, write_tree
from essence_kd.hmm.tree_building import (
    NO_PHONE,
    TreeOptions,
    accumulate_tree_stats,
    add_tree_stats,
    build_tree,
    cluster_phones,
    log_likelihood,
)
from essence_kd.io.errors import UserError

PHONES = range(1, 7)  # 1: silence
STATES = dict.fromkeys(PHONES, 3)
ROOTS = [(True, True, [1]), (True, True, [2, 3]), (True, True, [4, 5, 6])]
QUESTIONS = [[2, 3], [4], [5, 6], [2, 4], [1]]


def frames(count=4000, seed=0, dim=4):
    """Frames whose mean depends on the state, the phone, and whether the left phone is 4."""
    rng = np.random.default_rng(seed)
    windows = rng.integers(0, 7, (count, 3))
    windows[:, 1] = rng.integers(1, 7, count)
    states = rng.integers(0, 3, count)
    shift = np.stack([states, windows[:, 1], 3.0 * (windows[:, 0] == 4) * (windows[:, 1] > 1), 0 * states], axis=1)
    return (rng.normal(size=(count, dim)) + shift[:, :dim]).astype(np.float32), windows, states


def brute_force(stats, questions, roots, num_leaves, min_gain):
    """Sets of events: greedy splits, each tried in full."""
    rows = stats.rows()

    def value(members):
        return float(log_likelihood(rows[sorted(members)].sum(axis=0)[None])[0])

    asked = [(0, [s]) for s in range(0)] + [(0, list(range(n))) for n in (1, 2)]
    asked += [(key, sorted(line)) for key in (1, 2, 3) for line in sorted(map(sorted, questions))]
    parts = [{n for n, event in enumerate(stats.events) if event[2] in phones} for _, _, phones in roots]
    gained = 0.0
    while len(parts) < num_leaves:
        best = (min_gain, None)
        for part in parts:
            whole = value(part)
            for key, values in asked:
                if key in (1, 3) and any(stats.events[n, key] == NO_PHONE for n in part):
                    continue
                yes = {n for n in part if stats.events[n, key] in values}
                if yes and yes != part:
                    gain = value(yes) + value(part - yes) - whole
                    if gain > best[0]:
                        best = (gain, (part, yes))
        if best[1] is None:
            break
        part, yes = best[1]
        parts.remove(part)
        parts += [yes, part - yes]
        gained += best[0]
    return parts, gained


@pytest.mark.parametrize("num_leaves", [3, 8, 16])
def test_splits_are_those_of_a_brute_force_build(num_leaves):
    """At a number of leaves that is a multiple of 8 (or with nothing to split) no leaf is merged for its number."""
    stats = accumulate_tree_stats(*frames(), [1])
    tree = build_tree(stats, QUESTIONS, ROOTS, STATES, TreeOptions(num_leaves, 5.0))
    parts, gained = brute_force(stats, QUESTIONS, ROOTS, num_leaves, 5.0)
    at = tree.pdfs(stats.events[:, 1:], stats.events[:, 0])
    ours = {frozenset(np.flatnonzero(at == pdf).tolist()) for pdf in range(tree.num_pdfs)}
    if num_leaves == 3:
        assert ours == {frozenset(part) for part in parts} and gained == 0
        return
    rows = stats.rows()
    total = sum(log_likelihood(rows[sorted(part)].sum(axis=0)[None])[0] for part in ours)
    best = sum(log_likelihood(rows[sorted(part)].sum(axis=0)[None])[0] for part in parts)
    merged = len(parts) - len(ours)  # leaves that gained less than the smallest split, apart or as one
    assert ours == {frozenset(part) for part in parts} if not merged else best - total < merged * 400


def test_the_context_that_matters_is_found():
    stats = accumulate_tree_stats(*frames(), [1])
    tree = build_tree(stats, [[p] for p in PHONES], ROOTS, STATES, TreeOptions(60, 20.0))
    window = np.array([[left, 5, 2] for left in (2, 3, 4, 6)])
    a, b, c, d = tree.pdfs(window, np.zeros(4, int)).tolist()
    assert a == b == d != c


def test_statistics_add_up():
    feats, windows, states = frames(900)
    whole = accumulate_tree_stats(feats, windows, states, [1])
    parts = add_tree_stats([accumulate_tree_stats(feats[a:b], windows[a:b], states[a:b], [1])
                            for a, b in ((0, 250), (250, 700), (700, 900))])
    assert np.array_equal(whole.events, parts.events)
    np.testing.assert_allclose(whole.rows(), parts.rows())
    assert whole.count.sum() == 900
    silent = whole.events[:, 2] == 1
    assert (whole.events[silent][:, [1, 3]] == NO_PHONE).all() and (whole.events[~silent] >= 0).all()
    n = int(np.flatnonzero(~silent)[7])
    mine = (states == whole.events[n, 0]) & (windows == whole.events[n, 1:]).all(axis=1)
    np.testing.assert_allclose(whole.first[n], feats[mine].sum(axis=0), rtol=1e-4)


def test_clusters_of_phones_are_questions():
    stats = accumulate_tree_stats(*frames(), [1])
    sets = [[1], [2], [3], [4], [5], [6]]
    found = cluster_phones(stats, sets)
    assert found == cluster_phones(stats, sets)  # the same seed, the same questions
    assert all([phone] in found for phone in PHONES) and list(PHONES) in found
    assert [1, 2, 3] in found and [4, 5, 6] in found  # means are the phones' numbers


def test_too_few_leaves_and_no_frames():
    stats = accumulate_tree_stats(*frames(), [1])
    with pytest.raises(UserError, match="2 leaves cannot hold the 3 roots"):
        build_tree(stats, QUESTIONS, ROOTS, STATES, TreeOptions(2))
    empty = accumulate_tree_stats(np.zeros((0, 4), np.float32), np.zeros((0, 3), int), np.zeros(0, int), [1])
    with pytest.raises(UserError, match="needs aligned frames"):
        build_tree(empty, QUESTIONS, ROOTS, STATES)


def test_what_no_frame_shows_stays_whole():
    """One event, one phone alone, a phone that never occurs: a leaf for each root."""
    feats, windows, states = frames(50)
    windows[:], states[:] = (0, 4, 0), 1
    stats = accumulate_tree_stats(feats, windows, states, [1])
    tree = build_tree(stats, QUESTIONS, ROOTS, STATES, TreeOptions(100, 1.0))
    assert tree.num_pdfs == 3
    assert tree.pdfs(np.array([[0, 4, 0], [5, 2, 2], [0, 1, 0]]), np.array([1, 0, 2])).tolist() == [2, 1, 0]


def test_roots_that_are_not_shared_and_not_split():
    stats = accumulate_tree_stats(*frames(), [1])
    roots = [(False, False, [1]), (False, True, [2, 3]), (True, False, [4, 5, 6])]
    tree = build_tree(stats, QUESTIONS, roots, STATES, TreeOptions(24, 1.0))
    assert [possible_pdfs(tree, 1, state) for state in range(3)] == [[0], [1], [2]]
    assert len({pdf for phone in (4, 5, 6) for state in range(3) for pdf in possible_pdfs(tree, phone, state)}) == 1
    assert len({pdf for state in range(3) for pdf in possible_pdfs(tree, 2, state)}) > 3


def test_pdfs_of_a_tree_by_hand():
    tree = Tree(Split(1, (1,), Table(STATE, [0, 1, 2]), Split(0, (0, 1), 3, Split(2, (4, 5), 4, 5))))
    windows = list(itertools.product(range(6), range(1, 6), range(6)))
    for state in range(3):
        found = tree.pdfs(np.array(windows), np.full(len(windows), state))
        expected = [state if b == 1 else 3 if a in (0, 1) else 4 if c in (4, 5) else 5 for a, b, c in windows]
        assert found.tolist() == expected
    assert tree.pdfs(np.array([[0, 1, 0]]), np.array([3])).tolist() == [-1]  # no such state
    assert possible_pdfs(tree, 1, 2) == [2] and possible_pdfs(tree, 3, 0) == [3, 4, 5]
    assert leaves(tree.root) == [0, 1, 2, 3, 4, 5] and tree.num_pdfs == 6


def test_monophones():
    tree = monophone_tree([[1, 2], [4]], {1: 3, 2: 3, 4: 5})
    assert possible_pdfs(tree, 2, 1) == [1] == possible_pdfs(tree, 1, 1) and possible_pdfs(tree, 4, 4) == [7]
    assert tree.num_pdfs == 8 and (tree.width, tree.central) == (1, 0)


def test_files(tmp_path):
    tree = Tree(Split(1, (1, 3), Table(STATE, [0, None, 2]), Split(0, (), 3, 1)))
    write_tree(tmp_path / "tree", tree)
    assert read_tree(tmp_path / "tree") == tree
    text = ("ContextDependency 3 1 ToPdf SE 1 [ 1 3 ]\n{ TE -1 3 ( CE 0 NULL CE 2 )\nSE 0 [ ]\n{ CE 3 CE 1 } \n} \n"
            "EndContextDependency ")
    (tmp_path / "text").write_text(text)
    assert read_tree(tmp_path / "text") == tree
    whole = (tmp_path / "tree").read_bytes()
    for content in [whole[:n] for n in range(0, len(whole), 7)] + [b"", b"ContextDependency 3 9", text.replace(
            "CE 2", "CE -2").encode(), text.replace("TE -1 3", "TE -1 2000000000").encode(), b"\0B" + b"SE " * 3000,
            b"ContextDependency 1 0 ToPdf " + b"SE 0 [ ] { " * 5000]:
        (tmp_path / "broken").write_bytes(content)
        with pytest.raises(UserError, match="broken: not a whole decision tree"):
            read_tree(tmp_path / "broken")
    with pytest.raises(UserError, match="nothing: No such file"):
        read_tree(tmp_path / "nothing")


def test_roots_of_a_lang(tmp_path):
    lang = make_lang(tmp_path)
    roots, questions, independent = read_roots(lang)
    assert [phones for _, _, phones in roots] == [sorted(line) for line in lang.sets] or len(roots) == len(lang.sets)
    assert independent == lang.silence and all(shared and split for shared, split, _ in roots)
    file = lang.path / "phones" / "roots.int"
    whole = file.read_text()
    for content, told in ((whole + "shared split 1\n", "phone-id 1 must be in one line"),
                          (whole.replace("shared", "split", 1), "line 1: is not"),
                          (whole[whole.index("\n") + 1:], "phone-id 1 must be in one line"),
                          ("shared split x\n", "line 1: invalid literal")):
        file.write_text(content)
        with pytest.raises(UserError, match=told):
            read_roots(lang)
