"""Small languages, models and decoding graphs, paths through them and scores of these paths."""
import itertools
from pathlib import Path

import numpy as np

from builders.kaldi_gmm import transition_model

from essence_kd.hmm import graph as R
from essence_kd.hmm import lang as L
from essence_kd.hmm import lm
from essence_kd.hmm.fst import Fst, from_kaldifst, make_fst, sort_arcs, to_kaldifst, write_fst
from essence_kd.hmm.gmm import Gmm
from essence_kd.hmm.graph import Graph, UnitHmms
from essence_kd.hmm.transition_model import TransitionModel
from essence_kd.hmm.tree import STATE, Split, Table, Tree, monophone_tree

LEXICON = {"red": ["R E D"], "read": ["R E D", "R I D"], "reader": ["R I D A"], "a": ["A"], "dear": ["D I A"],
           "add": ["A D D"], "era": ["E R A"], "<unk>": ["SPN"]}
TEXT = ["a red era", "read a reader", "dear reader add a red", "a", "add add a read", "red red red", "dear a", "read"]
KINDS = {"": 0, "_B": 1, "_E": 2, "_I": 3, "_S": 4}
DICT = {
    "lexicon.txt": "<unk> SPN\na AX\nred R EH D\nread R EH D\nread R IY D\nreader R IY D ER\n",
    "silence_phones.txt": "SIL\nSPN\n", "optional_silence.txt": "SIL\n",
    "nonsilence_phones.txt": "AX\nD\nEH\nER\nIY\nR\n", "extra_questions.txt": "AX ER\n",
}


def make_dict(path: Path, **changes) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in {**DICT, **changes}.items():
        if text is None:
            (path / name).unlink(missing_ok=True)
        else:
            (path / name).write_text(text, encoding="utf-8")
    return path


def make_lang(root, text=TEXT, **options):
    folder = root / "dict"
    folder.mkdir(parents=True)
    (folder / "lexicon.txt").write_text("".join(f"{w} {p}\n" for w, prons in LEXICON.items() for p in prons))
    (folder / "nonsilence_phones.txt").write_text("A\nD\nE\nI\nR\n")
    (folder / "silence_phones.txt").write_text("SIL\nSPN\n")
    (folder / "optional_silence.txt").write_text("SIL\n")
    lang = L.prepare_lang(folder, root / "lang", **options)
    grammar, _ = lm.make_grammar(lm.estimate([line.split() for line in text], 3), lang.words)
    write_fst(root / "lang" / "G.fst", grammar)
    return lang


def make_model(lang, seed=0, classes=None):
    """A model without context, with random transition probabilities and one random Gaussian per pdf."""
    classes = classes or [[phone] for phone in sorted(lang.topo)]
    sizes = {phone: len(states) for phone, states in lang.topo.items()}
    return random_model(lang, monophone_tree(classes, sizes), seed)


def random_model(lang, tree, seed=0):
    """A model of any tree, with random transition probabilities and one random Gaussian per pdf."""
    rng = np.random.default_rng(seed)
    transitions, pdfs = TransitionModel.of_tree(tree, lang.topo), tree.num_pdfs
    for first, last in zip(transitions.first_ids(), [*transitions.first_ids()[1:], transitions.num_ids + 1]):
        transitions.probs[first:last] = rng.dirichlet(np.full(last - first, 5.0))
    return Gmm(lang.phones, tree, transitions, np.arange(pdfs + 1), np.ones(pdfs), rng.normal(size=(pdfs, 6)),
               np.ones((pdfs, 6)))


def triphone_tree(lang):
    """A tree that asks for the left and the right neighbour, by hand."""
    names = lang.phone_ids
    red = tuple(sorted(names[f"R_{kind}"] for kind in "BEIS"))
    silent = (0, *sorted(lang.silence))
    phones = sorted(lang.topo)
    at = iter(range(10 ** 6))

    def node(phone):
        states = len(lang.topo[phone])
        if phone in lang.silence:
            return Table(STATE, [next(at) for _ in range(states)])
        return Split(0, red, Table(STATE, [next(at) for _ in range(states)]),
                     Split(2, silent, next(at), Table(STATE, [next(at) for _ in range(states)])))

    return Tree(Table(1, [node(phone) if phone in phones else None for phone in range(phones[-1] + 1)]))


def pdf_table(model):
    """(phone-id, HMM state) -> pdf-id of a model without context."""
    return {(phone, state): pdf for phone, state, pdf, _ in model.transitions.tuples.tolist()}


def build(lang, model, factor=1, counts=None, **options):
    """The decoding graph of a model."""
    return R.build_graph(lang, model.tree, UnitHmms(model.transitions, factor, counts), **options)


def as_fst(graph, labels="ilabel"):
    return sort_arcs(make_fst(graph.src, graph.dst, getattr(graph, labels), graph.olabel, graph.weight, graph.final))


def best(fst, labels):
    """(cost, words) of the cheapest path with these input labels; cost inf where there is none."""
    import kaldifst

    composed = kaldifst.compose(kaldifst.make_linear_acceptor([int(i) for i in labels]), to_kaldifst(fst))
    done, _, words, weight = kaldifst.get_linear_symbol_sequence(kaldifst.shortest_path(composed))
    if not done or composed.start < 0:
        return np.inf, []
    return weight.value, words


def wander(graph, rng, longest=200):
    """A random path: (arc indices)."""
    bounds = np.searchsorted(graph.src, np.arange(graph.num_states + 1))
    while True:
        state, path = 0, []
        while len(path) < longest:
            if np.isfinite(graph.final[state]) and rng.random() < 0.3:
                return np.array(path, dtype=np.int64)
            if bounds[state] == bounds[state + 1]:
                break
            arc = int(rng.integers(bounds[state], bounds[state + 1]))
            path.append(arc)
            state = int(graph.dst[arc])


def paths_agree(ours, theirs, count, tolerance):
    """Tries paths of either graph, and label sequences that may be of neither: both must give the same words and cost,
    or none. Returns how many said a word."""
    rng, flat, found = np.random.default_rng(0), [as_fst(ours), as_fst(theirs)], 0
    for number in range(count):
        source = (ours, theirs)[number % 2]
        path = wander(source, rng)
        labels = source.ilabel[path][source.ilabel[path] > 0]
        if number % 3 == 2:
            labels = labels[rng.permutation(len(labels))]
        a, b = (best(fst, labels) for fst in flat)
        assert (a[0] == b[0] or abs(a[0] - b[0]) <= tolerance) and a[1] == b[1], (a, b)
        found += np.isfinite(a[0]) and len(a[1]) > 0
    return found


def kaldis_hclg(lang, model, transition_scale, self_loop_scale):
    """HCLG as Kaldi's mkgraph.sh makes it, with kaldi-hmm-gmm's H and self-loops, over transition-ids."""
    import kaldi_hmm_gmm as khg
    import kaldifst

    transitions, context = transition_model(model)
    lg = to_kaldifst(sort_arcs(R.compose_lexicon_and_grammar(lang)))
    clg, labels = kaldifst.compose_context(lang.disambig, 1, 0, lg)
    kaldifst.arcsort(clg, "ilabel")
    config = khg.HTransducerConfig(transition_scale=transition_scale)
    h, disambig = khg.get_h_transducer(labels, context, transitions, config)
    kaldifst.arcsort(h, "olabel")
    hclg = kaldifst.compose(h, clg)
    kaldifst.determinize_star(hclg, use_log=True)
    arrays = from_kaldifst(hclg)
    ilabel = np.where(np.isin(arrays.ilabel, disambig), 0, arrays.ilabel)
    hclg = to_kaldifst(Fst(arrays.src, arrays.dst, ilabel, arrays.olabel, arrays.weight, arrays.final, arrays.start))
    kaldifst.minimize_encoded(hclg)
    hclg = khg.add_self_loops(self_loop_scale=self_loop_scale, disambig_syms=[], reorder=True, trans_model=transitions,
                              ifst=hclg)
    return from_kaldifst(hclg)


def kaldis_graph(lang, model, transition_scale, self_loop_scale):
    """The same over pdf-id + 1."""
    arrays = kaldis_hclg(lang, model, transition_scale, self_loop_scale)
    pdf = model.transitions.pdf
    ilabel = np.where(arrays.ilabel > 0, pdf[arrays.ilabel] + 1, 0).astype(np.int32)
    return sort_arcs(Fst(arrays.src, arrays.dst, ilabel, arrays.olabel, arrays.weight, arrays.final, arrays.start))


def loop_graph(num_words=20, num_phones=8, seed=0, positions=True, lengths=(1, 3), moved=False, silence_first=False):
    """A loop of random words over phones of three skippable states, with optional silence and epsilons.

    Shaped like the graphs of networks at 30 ms: a phone takes one frame or more. A word's label sits on the first arc
    of its first phone; with ``moved``, that of word 1, 4, ... on an epsilon after its last phone and that of word 2, 5,
    ... on an epsilon before its first. Silence comes after words; with ``silence_first`` before them, too.
    """
    rng = np.random.default_rng(seed)
    phones, kinds, units, unit_of, arcs = ["<eps>", "SIL"], [0, 0], [(0, -1, -1)], {}, []
    words, final = ["<eps>"] + [f"w{i}" for i in range(1, num_words + 1)], {0: 0.5, 1: 0.25}
    states = itertools.count(2)

    def phone_id(name, suffix):
        if name + suffix not in phones:
            phones.append(name + suffix)
            kinds.append(KINDS[suffix] if positions else 0)
        return phones.index(name + suffix)

    def unit(phone, state):
        if (phone, state) not in unit_of:
            unit_of[phone, state] = len(units)
            units.append((phone, state, len(units) - 1))
        return unit_of[phone, state]

    def add_phone(source, phone, target, word, cost, word_after=0):
        inside = [next(states) for _ in range(3)]
        for k, here in enumerate(inside):
            arcs.append((source, here, unit(phone, k), word, cost + 1.0 + 0.1 * k, 1))
            arcs.append((here, here, unit(phone, k), 0, 0.7, 0))
            arcs.extend((here, inside[j], unit(phone, j), 0, 1.2, 0) for j in range(k + 1, 3))
            arcs.append((here, target, 0, word_after, 0.6, 0))

    seen = set()
    for word in range(1, num_words + 1):
        while True:
            pron = tuple(rng.integers(num_phones, size=rng.integers(lengths[0], lengths[1] + 1)))
            if pron not in seen:
                seen.add(pron)
                break
        here, lm = 0, float(rng.uniform(1, 4))
        for i, phone in enumerate(pron):
            last = i == len(pron) - 1
            suffix = "_S" if len(pron) == 1 else "_B" if i == 0 else "_E" if last else "_I"
            there = 1 if last else next(states)
            place = word % 3 if moved else 0
            if i == 0 and place == 2:
                arcs.append((here, here := next(states), 0, word, 0.0, 0))
            add_phone(here, phone_id(f"P{phone}", suffix), there, word if i == 0 and place == 0 else 0,
                      lm if i == 0 else 0.0, word if last and place == 1 else 0)
            here = there
    add_phone(1, 1, 0, 0, 0.7)
    if silence_first:
        add_phone(0, 1, 0, 0, 0.7)
    arcs.append((1, 0, 0, 0, 0.7, 0))
    table = np.array([(src, dst, units[u][2] + 1 if u else 0, word, cost, u, begin)
                      for src, dst, u, word, cost, begin in arcs])
    table = table[np.lexsort((table[:, 2], table[:, 0]))]
    costs = np.full(next(states), np.inf, np.float32)
    for state, cost in final.items():
        costs[state] = cost
    columns = dict(zip(("src", "dst", "ilabel", "olabel", "weight", "unit", "begin"), table.T))
    types = dict(weight=np.float32, begin=np.uint8)
    of_unit = np.array(units, np.int32)
    return Graph(**{k: v.astype(types.get(k, np.int32)) for k, v in columns.items()}, final=costs,
                 unit_phone=of_unit[:, 0], unit_state=of_unit[:, 1], unit_pdf=of_unit[:, 2], phones=np.array(phones),
                 phone_kind=np.array(kinds, np.uint8), words=np.array(words),
                 meta={"num_pdfs": len(units) - 1, "frame_subsampling_factor": 3, "tree_hash": "f00d"})


def pdf_graph(num_pdfs, tree_hash=None):
    """A graph for rows of 30 ms: the word wN is one row or more of pdf N, and any may follow any other."""
    arcs = np.array([(a, b, b, b * (a != b)) for a in range(num_pdfs + 1) for b in range(1, num_pdfs + 1)], np.int32)
    return Graph(*arcs.T, weight=np.where(arcs[:, 3] > 0, 2.0, 0.2).astype(np.float32), unit=arcs[:, 2],
                 begin=(arcs[:, 3] > 0).astype(np.uint8), final=np.zeros(num_pdfs + 1, np.float32),
                 unit_phone=np.arange(num_pdfs + 1, dtype=np.int32),
                 unit_state=np.array([-1] + [0] * num_pdfs, np.int32),
                 unit_pdf=np.arange(-1, num_pdfs, dtype=np.int32),
                 phones=np.array(["<eps>", *(f"p{c}_S" for c in range(num_pdfs))]),
                 phone_kind=np.array([0] + [4] * num_pdfs, np.uint8),
                 words=np.array(["<eps>"] + [f"w{c}" for c in range(num_pdfs)]),
                 meta={"num_pdfs": num_pdfs, "frame_subsampling_factor": 3, "tree_hash": tree_hash})


def write_graph(folder, graph):
    """graph.npz and words.txt in a new folder; the folder."""
    folder.mkdir(parents=True)
    R.save_graph(folder / "graph.npz", graph)
    (folder / "words.txt").write_text("".join(f"{w} {i}\n" for i, w in enumerate(graph.words)))
    return folder


def random_path(graph, num_words, rng):
    """Arc indices of a random walk from the start to a final state that says ``num_words`` words."""
    leaving = [np.flatnonzero(graph.src == state) for state in range(graph.num_states)]
    while True:
        state, path, said = 0, [], 0
        while said < num_words or not np.isfinite(graph.final[state]):
            weights = np.exp(-graph.weight[leaving[state]])
            arc = rng.choice(leaving[state], p=weights / weights.sum())
            path.append(int(arc))
            said += int(graph.olabel[arc] > 0)
            state = int(graph.dst[arc])
            if said > num_words or len(path) > 200 * num_words:
                break
        else:
            return np.array(path)


def scores_of(graph, path, rng, strength=4.0):
    """Noisy scores (T, C) in which the path's pdfs stand out."""
    labels = graph.ilabel[path]
    labels = labels[labels > 0]
    scores = rng.normal(size=(len(labels), graph.num_pdfs))
    scores[np.arange(len(labels)), labels - 1] += strength
    return scores.astype(np.float32)
