"""Decoding with k2: batches of utterances against one graph, lattices, posteriors, sweeps; CPU or GPU.

k2 wants a graph without epsilons, so epsilons are removed once when the graph is loaded; each arc of the k2 graph
remembers the chain of arcs of ``hmm.graph.Graph`` that it stands for. k2's scores are negated costs.
"""
from __future__ import annotations

import numpy as np

from essence_kd.decode.decoder import LAST_ROWS, Decoded, Decoder, register_decoder
from essence_kd.decode.k2_python import k2_here, run_in_k2_python
from essence_kd.decode.lattice import Lattice, Occurrences
from essence_kd.decode.options import DecodeOptions
from essence_kd.hmm.fst import ranges
from essence_kd.hmm.graph import Graph
from essence_kd.io.errors import UserError

_DEAD = -1e30  # backward scores of states from which no path leads to the end are minus infinity
_EVERYTHING = 1000.0  # an output beam that nothing lies outside of
_NEVER = -1e9  # score of the column for label 0, which no arc carries


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
        final = np.flatnonzero(np.isfinite(graph.final))
        src = np.concatenate([graph.src, final])
        order = np.argsort(src, kind="stable")
        scores = -np.concatenate([graph.weight, graph.final[final]]).astype(np.float32)
        arcs = np.stack([src, np.concatenate([graph.dst, np.full(len(final), graph.num_states)]),
                         np.concatenate([graph.ilabel, np.full(len(final), -1)]), scores.view(np.int32)], axis=1)
        number = np.concatenate([np.arange(1, graph.num_arcs + 1), np.zeros(len(final))])  # 0, the filler: final arcs
        fsa = k2.Fsa(torch.from_numpy(arcs[order].astype(np.int32)))
        fsa.chain = torch.from_numpy(number[order].astype(np.int32))
        fsa.chain_filler = 0
        fsa = k2.arc_sort(k2.connect(k2.remove_epsilon(fsa)))
        if isinstance(fsa.chain, k2.RaggedTensor):
            self.chain_splits = fsa.chain.shape.row_splits(1).numpy().astype(np.int64)
            self.chain = fsa.chain.values.numpy().astype(np.int64) - 1
        else:  # k2 leaves a graph without epsilons as it is
            number = fsa.chain.numpy().astype(np.int64)
            self.chain_splits = np.append(0, np.cumsum(number > 0))
            self.chain = number[number > 0] - 1
        labels = np.append(0, np.cumsum(graph.olabel[self.chain] > 0))
        self.num_words = (labels[self.chain_splits[1:]] - labels[self.chain_splits[:-1]]).astype(np.float32)
        bare = k2.Fsa(fsa.arcs)
        bare.number = torch.arange(bare.num_arcs, dtype=torch.int32)
        bare.graph_scores = fsa.scores.detach().clone()
        bare.penalised = torch.from_numpy(self.num_words)
        self._fsa = k2.create_fsa_vec([bare]).to(self.device)

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
        k2, torch = self._k2, self._torch
        longest = max(len(scores) for scores in batch)
        width = batch[0].shape[1]
        dense = torch.full((len(batch), longest, width + 1), _NEVER, dtype=torch.float32)  # (N, T, 1 + C)
        for row, scores in enumerate(batch):
            dense[row, :len(scores), 1:] = torch.from_numpy(np.ascontiguousarray(scores))
        dense[:, :, 1:] *= self.options.acoustic_scale
        segments = torch.tensor([[row, 0, len(scores)] for row, scores in enumerate(batch)], dtype=torch.int32)
        return k2.intersect_dense_pruned(
            self._fsa, k2.DenseFsaVec(dense.to(self.device), segments),
            search_beam=self.options.beam * widen, output_beam=self.options.output_beam,
            min_active_states=self.options.min_active, max_active_states=int(self.options.max_active * widen ** 2),
            frame_idx_name="frame")

    def active_states(self, batch: list[np.ndarray]) -> list[int]:
        """States that the search holds active after the last row of each matrix float32 (T, C), T > 0.

        k2 tells nothing of states that do not reach the end; so the search gets a graph in which every state may wait,
        on rows where nothing else is possible, and then end. Rows of waiting follow, for k2 widens its beam in the last
        steps: the counts are those of a search whose end is farther.
        """
        k2, torch = self._k2, self._torch
        if self._waiting is None or self._waiting_penalty != self.options.word_insertion_penalty:
            self._waiting, self._waiting_penalty = self._waiting_graph(), self.options.word_insertion_penalty
        longest, width = max(len(scores) for scores in batch) + LAST_ROWS, batch[0].shape[1]
        dense = torch.full((len(batch), longest, width + 2), _NEVER, dtype=torch.float32)
        for row, scores in enumerate(batch):
            dense[row, :len(scores), 1:-1] = torch.from_numpy(scores * np.float32(self.options.acoustic_scale))
            dense[row, len(scores):, -1] = 0.0
        order = sorted(range(len(batch)), key=lambda row: -len(batch[row]))
        segments = torch.tensor([[row, 0, len(batch[row]) + LAST_ROWS] for row in order], dtype=torch.int32)
        with torch.no_grad():
            found = k2.intersect_dense_pruned(
                self._waiting, k2.DenseFsaVec(dense.to(self.device), segments), search_beam=self.options.beam,
                output_beam=_EVERYTHING, min_active_states=self.options.min_active,
                max_active_states=self.options.max_active)
        _, arcs = self._splits(found)
        ends = np.append(0, np.cumsum(found.arcs.values()[:, 2].cpu().numpy() == -1))
        counts = [0] * len(batch)
        for place, row in enumerate(order):
            counts[row] = int(ends[arcs[place + 1]] - ends[arcs[place]])
        return counts

    def _waiting_graph(self):
        """The graph with a loop (label C + 1) and an arc to the end, both free, at every state."""
        k2, torch = self._k2, self._torch
        arcs = self._fsa.arcs.values().cpu().numpy().copy()
        arcs[:, 3] = self._fsa.scores.detach().cpu().numpy().view(np.int32)
        arcs = arcs[arcs[:, 2] != -1]
        last = int(self._splits(self._fsa)[0][-1]) - 1
        state, nothing = np.arange(last), np.zeros(last)
        loops = np.stack([state, state, nothing + self.graph.num_pdfs + 1, nothing], axis=1)
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
            arrows = found.arcs.values()[:, 1].cpu().numpy()
            target = arrows + np.repeat(states[:-1], np.diff(arcs))
            answers = []
            for row in range(len(batch)):
                path = numbers[best_splits[row]:best_splits[row + 1]]
                answers.append(Decoded(path=self._expand(path) if len(path) else None,
                                       states=int(np.count_nonzero(alive[states[row]:states[row + 1]])),
                                       arcs=int(np.count_nonzero(alive[target[arcs[row]:arcs[row + 1]]]))))
            posterior = found.get_arc_post(True, True).exp().cpu().numpy() if confidences and found.num_arcs else None
            if posterior is not None:
                self._add_occurrences(found, posterior, arcs, answers)
            if lattices:
                for row, answer in enumerate(answers):
                    if answer.path is not None:
                        kept = arcs[row] + np.flatnonzero(alive[target[arcs[row]:arcs[row + 1]]])
                        answer.lattice = self._lattice(found, kept, alive[states[row]:states[row + 1]], batch[row])
                        answer.lattice.posterior = None if posterior is None else posterior[kept]
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
            answer.occurrences = Occurrences(word[mine], frame[owner[mine]], posterior[owner[mine]])

    def _lattice(self, found, arcs: np.ndarray, alive: np.ndarray, scores: np.ndarray) -> Lattice:
        """One utterance's lattice: its ``arcs`` of all (int64), states renumbered to those ``alive`` (bool)."""
        index = self._torch.from_numpy(arcs).to(self.device)
        values = found.arcs.values()[index].cpu().numpy()
        number = found.number[index].cpu().numpy().astype(np.int64)
        frame = found.frame[index].cpu().numpy()
        label = values[:, 2]
        emitting = label > 0
        score = np.zeros(len(values), np.float32)
        score[emitting] = scores[frame[emitting], label[emitting] - 1]
        rank = np.cumsum(alive, dtype=np.int32) - 1
        final = np.full(rank[-1] + 1, np.inf, np.float32)
        final[-1] = 0.0
        lengths = self.chain_splits[number + 1] - self.chain_splits[number]
        return Lattice(src=rank[values[:, 0]], dst=rank[values[:, 1]], offsets=np.append(0, np.cumsum(lengths)),
                       graph_arcs=self._expand(number), frame=frame,
                       graph_cost=-found.graph_scores[index].cpu().numpy(), score=score, final=final,
                       num_frames=len(scores))

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
