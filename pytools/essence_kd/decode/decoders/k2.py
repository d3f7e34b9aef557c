"""Decoding with k2: batches of utterances against one graph, lattices, posteriors, sweeps; CPU or GPU.

k2 knows no epsilons. Were they removed, each end of a word would have the arcs of all beginnings of words behind it,
and k2 would look at all of them for each. So k2 gets a row without scores before each row and after the last: there a
state waits, at no cost, or goes along a way of epsilons (hmm.epsilons). Each arc of the k2 graph remembers the chain of
arcs of ``hmm.graph.Graph`` that it stands for. k2's scores are negated costs.
"""
from __future__ import annotations

import numpy as np

from essence_kd.decode.decoder import LAST_ROWS, Decoded, Decoder, register_decoder
from essence_kd.decode.k2_python import k2_here, run_in_k2_python
from essence_kd.decode.lattice import Lattice, Occurrences
from essence_kd.decode.options import DecodeOptions
from essence_kd.hmm.epsilons import Phrases, epsilon_ways
from essence_kd.hmm.fst import ranges
from essence_kd.hmm.graph import Graph
from essence_kd.io.errors import UserError

_DEAD = -1e30  # backward scores of states from which no path leads to the end are minus infinity
_EVERYTHING = 1000.0  # an output beam that nothing lies outside of
_NEVER = -1e9  # score of what cannot be


def load_k2():
    """The modules k2 and torch; UserError where they cannot be imported."""
    try:
        import k2
        import torch
    except (ImportError, OSError) as error:
        raise UserError(f"k2 cannot be imported ({error}); set it up with local/setup_env.sh") from None
    return k2, torch


@register_decoder
class K2Decoder(Decoder):
    """Decodes batches by dense intersection, with lattices. UserError where k2 cannot be imported."""

    name = library = "k2"
    sweeps_lattices = True
    counts_active_states = True

    def __init__(self, graph: Graph, options: DecodeOptions, device: str | None = None):
        self._k2, self._torch = k2, torch = load_k2()
        if device is None:
            device = "cuda" if torch.cuda.is_available() and getattr(k2, "with_cuda", False) else "cpu"
        self.device = torch.device(device)
        if self.device.type == "cuda":
            self.batch_rows = 20000
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # k2 has one on a CPU; PyTorch's others would only wait between its operations
        self._load(graph)
        self._waiting, self._waiting_penalty = None, 0.0  # made when it is wanted
        super().__init__(graph, options)

    @classmethod
    def hand_over(cls, command: list[str]) -> int | None:
        return None if k2_here() else run_in_k2_python(command)

    @classmethod
    def check(cls) -> None:
        load_k2()

    def _load(self, graph: Graph) -> None:
        k2, torch = self._k2, self._torch
        self._between = graph.num_pdfs + 1  # the label of rows between rows
        final, emitting = np.flatnonzero(np.isfinite(graph.final)), np.flatnonzero(graph.ilabel > 0)
        ways = epsilon_ways(graph, Phrases.of_words(len(graph.words)))
        nothing, between = np.zeros(len(final), np.int64), np.full(len(ways.begin), self._between)
        src = np.concatenate([graph.src[emitting], ways.begin, final])
        dst = np.concatenate([graph.dst[emitting], ways.end, nothing + graph.num_states])
        label = np.concatenate([graph.ilabel[emitting], between, nothing - 1])
        scores = -np.concatenate([graph.weight[emitting], ways.cost, graph.final[final]]).astype(np.float32)
        lengths = np.concatenate([np.ones(len(emitting), np.int64), np.diff(ways.offsets), nothing])
        order = np.argsort(src, kind="stable")
        arcs = np.stack([*(column.astype(np.int32) for column in (src, dst, label)), scores.view(np.int32)], axis=1)
        starts, lengths = (np.cumsum(lengths) - lengths)[order], lengths[order]
        self.chain = np.append(emitting, ways.arcs)[ranges(starts, lengths)]
        self.chain_splits = np.append(0, np.cumsum(lengths))
        labels = np.append(0, np.cumsum(graph.olabel[self.chain] > 0))
        self.num_words = (labels[self.chain_splits[1:]] - labels[self.chain_splits[:-1]]).astype(np.float32)
        fsa = k2.Fsa(torch.from_numpy(arcs[order]))
        fsa.number = torch.arange(fsa.num_arcs, dtype=torch.int32)
        fsa.graph_scores = fsa.scores.detach().clone()
        fsa.penalised = torch.from_numpy(self.num_words)
        self._fsa = k2.create_fsa_vec([fsa]).to(self.device)

    def set_options(self, options: DecodeOptions) -> None:
        super().set_options(options)
        fsa = self._fsa
        fsa.scores = fsa.graph_scores - options.word_insertion_penalty * fsa.penalised

    def _expand(self, numbers: np.ndarray) -> np.ndarray:
        """Arcs of the graph (int64) that a sequence of k2 arcs stands for."""
        starts = self.chain_splits[numbers]
        return self.chain[ranges(starts, self.chain_splits[numbers + 1] - starts)]

    def _search(self, batch: list[np.ndarray], widen: float):
        """Lattices (FsaVec) of scores float32 (T, C); costs there are scaled and penalised as the options say."""
        return self._k2.intersect_dense_pruned(
            self._fsa, self._dense(batch, self._between + 1, 1), search_beam=self.options.beam * widen,
            output_beam=self.options.output_beam, min_active_states=self.options.min_active,
            max_active_states=int(self.options.max_active * widen ** 2), frame_idx_name="frame")

    def _dense(self, batch: list[np.ndarray], columns: int, more: int):
        """Scaled scores for k2: row 2 t + 1 is row t of an utterance, those between them have but label ``_between``.

        The ``more`` rows after the last have the last of the columns alone.
        """
        torch = self._torch
        longest = max(len(scores) for scores in batch)
        dense = torch.full((len(batch), 2 * longest + more, columns), _NEVER, dtype=torch.float32)
        for row, scores in enumerate(batch):
            end = 2 * len(scores)
            dense[row, 1:end:2, 1:self._between] = torch.from_numpy(scores * np.float32(self.options.acoustic_scale))
            dense[row, 0:end:2, self._between] = 0.0
            dense[row, end:, -1] = 0.0
        segments = torch.tensor([[row, 0, 2 * len(scores) + more] for row, scores in enumerate(batch)],
                                dtype=torch.int32)
        return self._k2.DenseFsaVec(dense.to(self.device), segments)

    def active_states(self, batch: list[np.ndarray]) -> list[int]:
        """States that the search holds active after the last row of each matrix float32 (T, C), T > 0.

        k2 tells nothing of states that do not reach the end; so the search gets a graph in which every state may wait,
        on rows where nothing else is possible, and then end. Rows of waiting follow, for k2 widens its beam in the last
        steps: the counts are those of a search whose end is farther.
        """
        k2, torch = self._k2, self._torch
        if self._waiting is None or self._waiting_penalty != self.options.word_insertion_penalty:
            self._waiting, self._waiting_penalty = self._waiting_graph(), self.options.word_insertion_penalty
        order = sorted(range(len(batch)), key=lambda row: -len(batch[row]))
        with torch.no_grad():
            found = k2.intersect_dense_pruned(
                self._waiting, self._dense([batch[row] for row in order], self._between + 2, LAST_ROWS),
                search_beam=self.options.beam, output_beam=_EVERYTHING, min_active_states=self.options.min_active,
                max_active_states=self.options.max_active)
        _, arcs = self._splits(found)
        ends = np.append(0, np.cumsum(found.arcs.values()[:, 2].cpu().numpy() == -1))
        counts = [0] * len(batch)
        for place, row in enumerate(order):
            counts[row] = int(ends[arcs[place + 1]] - ends[arcs[place]])
        return counts

    def _waiting_graph(self):
        """The graph with a loop (label C + 2) and an arc to the end, both free, at every state."""
        k2, torch = self._k2, self._torch
        arcs = self._fsa.arcs.values().cpu().numpy().copy()
        arcs[:, 3] = self._fsa.scores.detach().cpu().numpy().view(np.int32)
        arcs = arcs[arcs[:, 2] != -1]
        last = int(self._splits(self._fsa)[0][-1]) - 1
        state, nothing = np.arange(last), np.zeros(last)
        loops = np.stack([state, state, nothing + self._between + 1, nothing], axis=1)
        ends = np.stack([state, nothing + last, nothing - 1, nothing], axis=1)
        arcs = np.concatenate([arcs, loops.astype(np.int32), ends.astype(np.int32)])
        arcs = arcs[np.argsort(arcs[:, 0], kind="stable")]
        return k2.create_fsa_vec([k2.arc_sort(k2.Fsa(torch.from_numpy(arcs)))]).to(self.device)

    def _splits(self, fsas) -> tuple[np.ndarray, np.ndarray]:
        """First state and first arc of every utterance: int64 (N+1,) each."""
        states = fsas.arcs.shape().row_splits(1).cpu().numpy().astype(np.int64)
        arcs = fsas.arcs.shape().row_splits(2).cpu().numpy().astype(np.int64)
        return states, arcs[states]

    def decode(self, batch: list[np.ndarray], *, confidences: bool = True, lattices: bool = False) -> list[Decoded]:
        """Best paths of score matrices float32 (T, C), T > 0; utterances without a path are tried again wider.

        ``confidences`` adds word occurrences with posteriors, ``lattices`` the lattices themselves.
        """
        answers = self._decode(batch, 1.0, confidences, lattices)
        lost = [index for index, answer in enumerate(answers) if answer.path is None]
        if lost:
            again = self._decode([batch[i] for i in lost], self.options.retry_factor, confidences, lattices)
            for index, answer in zip(lost, again):
                answer.retried = True
                answers[index] = answer
        return answers

    def _decode(self, batch, widen: float, confidences: bool, lattices: bool) -> list[Decoded]:
        torch = self._torch
        with torch.no_grad():
            found = self._search(batch, widen)
            best = self._k2.shortest_path(found, use_double_scores=True)
            _, best_splits = self._splits(best)
            numbers = best.number.cpu().numpy().astype(np.int64)
            states, arcs = self._splits(found)
            # pruning leaves dead ends; confidences need the log semiring's sums, which k2 keeps
            alive = found.get_backward_scores(True, confidences).cpu().numpy() > _DEAD
            values = found.arcs.values().cpu().numpy()
            target = values[:, 1] + np.repeat(states[:-1], np.diff(arcs))
            emitting = np.flatnonzero((values[:, 2] > 0) & (values[:, 2] < self._between) & alive[target])
            bounds, entered = np.searchsorted(emitting, arcs), np.unique(target[emitting])
            answers = []
            for row in range(len(batch)):
                path = numbers[best_splits[row]:best_splits[row + 1]]
                answers.append(Decoded(path=self._expand(path) if len(path) else None,
                                       states=int(np.diff(np.searchsorted(entered, states[row:row + 2]))[0]),
                                       arcs=int(bounds[row + 1] - bounds[row])))
            posterior = found.get_arc_post(True, True).exp().cpu().numpy() if confidences and found.num_arcs else None
            if posterior is not None:
                self._add_occurrences(found, posterior, arcs, answers)
            if lattices:
                for row, answer in enumerate(answers):
                    if answer.path is not None:
                        kept = arcs[row] + np.flatnonzero(alive[target[arcs[row]:arcs[row + 1]]])
                        answer.lattice = self._lattice(found, kept, batch[row],
                                                       None if posterior is None else posterior[kept])
        return answers

    def _add_occurrences(self, found, posterior: np.ndarray, splits: np.ndarray, answers: list[Decoded]) -> None:
        number = found.number.cpu().numpy().astype(np.int64)
        carrying = np.flatnonzero((self.num_words[number] > 0) & (posterior > 1e-6))
        frame = found.frame.cpu().numpy()
        lengths = self.chain_splits[number[carrying] + 1] - self.chain_splits[number[carrying]]
        word = self.graph.olabel[self._expand(number[carrying])]
        owner = np.repeat(carrying, lengths)[word > 0]
        word = word[word > 0]
        bounds = np.searchsorted(owner, splits)
        for row, answer in enumerate(answers):
            mine = slice(bounds[row], bounds[row + 1])
            answer.occurrences = Occurrences(word[mine], frame[owner[mine]] // 2, posterior[owner[mine]])

    def _lattice(self, found, arcs: np.ndarray, scores: np.ndarray, posterior: np.ndarray | None) -> Lattice:
        """The lattice of one utterance: its ``arcs`` of all (int64).

        A state between rows that one arc alone enters is joined with the state which that arc leaves.
        """
        index = self._torch.from_numpy(arcs).to(self.device)
        values = found.arcs.values()[index].cpu().numpy()
        number = found.number[index].cpu().numpy().astype(np.int64)
        src, dst, label = values[:, 0], values[:, 1], values[:, 2]
        num_states = int(dst.max()) + 1
        entering = np.bincount(dst, minlength=num_states)
        joined = (label == self._between) & (entering[dst] == 1)
        before = np.full(num_states, -1)  # of each state that is joined, the arc that enters it
        before[dst[joined]] = np.flatnonzero(joined)
        kept = np.flatnonzero(~joined)
        way = before[src[kept]]
        cost = -found.graph_scores[index].cpu().numpy()
        chains = np.stack([np.where(way >= 0, number[way], -1), number[kept]], axis=1)
        starts = np.where(chains >= 0, self.chain_splits[chains], 0)
        lengths = np.where(chains >= 0, self.chain_splits[chains + 1] - starts, 0)
        src, dst, label = np.where(way >= 0, src[way], src[kept]), dst[kept], label[kept]
        frame = (found.frame[index].cpu().numpy() // 2)[kept]
        emitting = (label > 0) & (label < self._between)
        score = np.zeros(len(kept), np.float32)
        score[emitting] = scores[frame[emitting], label[emitting] - 1]
        there = np.zeros(num_states, bool)
        there[src] = there[dst] = True
        rank = np.cumsum(there, dtype=np.int32) - 1
        final = np.full(rank[-1] + 1, np.inf, np.float32)
        final[-1] = 0.0
        return Lattice(src=rank[src], dst=rank[dst], offsets=np.append(0, np.cumsum(lengths.sum(axis=1))),
                       graph_arcs=self.chain[ranges(starts.ravel(), lengths.ravel())], frame=frame,
                       graph_cost=np.where(way >= 0, cost[way], 0) + cost[kept], score=score, final=final,
                       num_frames=len(scores), posterior=None if posterior is None else posterior[kept])

    def sweep(self, batch: list[np.ndarray], scales: list[float],
              penalties: list[float]) -> list[list[list[np.ndarray]]]:
        """Words of every utterance for every acoustic scale and word insertion penalty, from one lattice each.

        The lattices are made at the options' scale and penalty and rescored. Returns ``[utterance][scale][penalty]``
        of word-ids (int32); an utterance without a path has empty sequences.
        """
        answers = self._sweep(batch, scales, penalties, 1.0)
        lost = [index for index, answer in enumerate(answers) if answer is None]
        if lost:
            again = self._sweep([batch[i] for i in lost], scales, penalties, self.options.retry_factor)
            nothing = [[np.zeros(0, np.int32) for _ in penalties] for _ in scales]
            for index, answer in zip(lost, again):
                answers[index] = nothing if answer is None else answer
        return answers

    def _sweep(self, batch, scales, penalties, widen: float) -> list:
        torch, k2 = self._torch, self._k2
        with torch.no_grad():
            found = self._search(batch, widen)
            _, arcs = self._splits(found)
            answer: list = [[[] for _ in scales] if arcs[row + 1] > arcs[row] else None for row in range(len(batch))]
            acoustic = (found.scores - found.graph_scores
                        + self.options.word_insertion_penalty * found.penalised) / self.options.acoustic_scale
            for i, scale in enumerate(scales):
                for penalty in penalties:
                    found.scores = acoustic * scale + found.graph_scores - penalty * found.penalised
                    best = k2.shortest_path(found, use_double_scores=True)
                    _, splits = self._splits(best)
                    numbers = best.number.cpu().numpy().astype(np.int64)
                    for row in range(len(batch)):
                        if answer[row] is not None:
                            labels = self.graph.olabel[self._expand(numbers[splits[row]:splits[row + 1]])]
                            answer[row][i].append(labels[labels > 0])
        return answer
