"""The results of one set, and the files that they become: words, times, lists, lattices, and decode.json."""
from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from essence_kd.decode.checks import ctm_places
from essence_kd.decode.decoder import Decoder, Job, Request
from essence_kd.decode.lattice import Entry, Hypothesis, ctm_lines
from essence_kd.decode.options import DecodeOptions
from essence_kd.decode.pieces import joined, joined_lists
from essence_kd.decode.workers import Outcome
from essence_kd.hmm.graph import Graph
from essence_kd.io.provenance import write_text


class DecodedSet:
    """Counts and results of one job until its files can be written."""

    def __init__(self, job: Job, options: DecodeOptions, kind: type[Decoder], graph: Graph, graph_path: Path):
        self.job, self.options, self.kind, self.graph, self.graph_path = job, options, kind, graph, graph_path
        self.places = ctm_places(job.data_dir) if job.data_dir else {}
        self.order: list[str] = []
        self.rows: dict[str, int] = {}
        self.starts: dict[str, list[int]] = {}  # first rows of an utterance's pieces; [0]: it is whole
        self.outcomes: dict[tuple[str, int], Outcome] = {}  # of pieces
        self.active: list[int] = []  # states after some rows
        self.seconds = 0.0

    def pieces(self, utt: str) -> list[Outcome]:
        """The outcomes of an utterance's pieces, in order."""
        return [self.outcomes[utt, number] for number in range(len(self.starts[utt]))]

    def all_pieces(self) -> list[Outcome]:
        """The outcomes of all pieces, in the order of the scores."""
        return [outcome for utt in self.order for outcome in self.pieces(utt)]

    def hyp(self, utt: str) -> Hypothesis:
        """The words of an utterance; times in rows of the graph."""
        return joined([o.hyp for o in self.pieces(utt)], self._graph_rows(utt))

    def n_best(self, utt: str, count: int) -> list[Entry]:
        """Its best word sequences."""
        return joined_lists([o.n_best for o in self.pieces(utt)], self._graph_rows(utt), count)

    def _graph_rows(self, utt: str) -> list[int]:
        return [start * self.options.repeat_rows for start in self.starts[utt]]

    def write(self, request: Request, rescoring: dict | None, wall: float, nj: int) -> dict:
        """Write all files and tell what there is of note; what decode.json has."""
        out, words = Path(self.job.out_dir), self.graph.words
        shift = self.options.frame_shift_ms / self.options.repeat_rows / 1000  # of the graph's rows
        out.mkdir(parents=True, exist_ok=True)
        texts: dict[str, list[str]] = {"hyp.txt": [], "hyp.ctm": []}
        if request.n_best:
            texts["nbest.txt"], texts["nbest.cost"] = [], []
        if request.lattices:
            texts["lat.txt"] = []
        ctm: list[tuple[tuple[str, str, float], list[str]]] = []
        for utt in self.order:
            hyp = self.hyp(utt)
            texts["hyp.txt"].append(" ".join([utt, *words[hyp.words]]))
            place = self.places.get(utt, (utt, "1", 0.0))
            ctm.append((place, ctm_lines(*place, hyp, words, shift)))
            for rank, entry in enumerate(self.n_best(utt, request.n_best) if request.n_best else (), 1):
                texts["nbest.txt"].append(" ".join([f"{utt}-{rank}", *words[entry.hyp.words]]))
                texts["nbest.cost"].append(f"{utt}-{rank} {entry.cost:.4f}")
            if request.lattices and self.outcomes[utt, 0].lattice:
                texts["lat.txt"] += [utt, *self.outcomes[utt, 0].lattice, ""]
        if self.places:
            ctm.sort(key=lambda entry: entry[0])
        texts["hyp.ctm"] = [line for _, lines in ctm for line in lines]
        for name, lines in texts.items():
            write_text(out / name, "".join(line + "\n" for line in lines))
        report = {**self._report(wall, nj), "rescoring": rescoring}
        write_text(out / "decode.json", json.dumps(report, indent=1) + "\n")
        self._tell(report)
        return report

    def _report(self, wall: float, nj: int) -> dict:
        options, rows = self.options, sum(self.rows.values())
        audio = rows * options.frame_shift_ms / 1000
        empty = [utt for utt in self.order if not self.rows[utt]]
        outcomes = self.all_pieces()
        found = {utt: [o.found for o in self.pieces(utt)] for utt in self.order if self.rows[utt]}
        lost = [utt for utt in found if not any(found[utt])]
        gaps = [utt for utt in found if any(found[utt]) and not all(found[utt])]
        sizes = [(o.states, o.arcs) for o in outcomes if o.states is not None]

        def per_row(i: int) -> float | None:
            return round(sum(size[i] for size in sizes) / max(rows, 1), 2) if sizes else None

        return {
            "decoder": self.kind.name, "decoder_version": self.kind.version(),
            "graph": str(self.graph_path), "num_pdfs": self.graph.num_pdfs,
            "tree_hash": self.graph.meta.get("tree_hash"), "scores": self.job.scores,
            "acoustic_scale": options.acoustic_scale, "word_insertion_penalty": options.word_insertion_penalty,
            "beam": options.beam, "output_beam": options.output_beam, "max_active": options.max_active,
            "min_active": options.min_active, "retry_factor": options.retry_factor,
            "frame_shift_ms": options.frame_shift_ms, "repeat_rows": options.repeat_rows,
            "num_utts": len(self.order), "num_frames": rows,
            "num_words": int(sum(len(o.hyp.words) for o in outcomes)), "num_pieces": len(outcomes),
            "audio_seconds": round(audio, 3), "decode_seconds": round(self.seconds, 3),
            "rtf": round(self.seconds / audio, 5) if audio else None, "wall_seconds": round(wall, 3), "nj": nj,
            "active_states_per_frame": round(float(np.mean(self.active)), 1) if self.active else None,
            "active_states_counted_at": len(self.active),
            "lattice_states_per_frame": per_row(0), "lattice_arcs_per_frame": per_row(1),
            "retried": sum(o.retried for o in outcomes),
            "no_path": len(lost), "no_path_utts": lost, "no_path_in_a_piece_utts": gaps,
            "unrescored_utts": [utt for utt in self.order if any(o.unrescored for o in self.pieces(utt))],
            "empty_audio": len(empty), "empty_audio_utts": empty,
        }

    def _tell(self, report: dict) -> None:
        out = self.job.out_dir
        print(f"essence decode: {out}: {report['num_utts']} utterances, {report['audio_seconds']:.0f} s of "
              f"audio, {report['num_words']} words, RTF {report['rtf']} with {self.kind.name}"
              + (f", about {report['active_states_per_frame']:.0f} active states per frame"
                 if report["active_states_per_frame"] is not None else "")
              + (f", lattices of {report['lattice_states_per_frame']} states and {report['lattice_arcs_per_frame']} "
                 "arcs per frame" if report["lattice_states_per_frame"] else "")
              + (f"; long ones in pieces: {report['num_pieces']}" if report["num_pieces"] > report["num_utts"] else ""),
              file=sys.stderr)
        for key, why in (("no_path_utts", "an empty hypothesis (no path survived the search)"),
                         ("no_path_in_a_piece_utts", "no words in a piece (no path survived the search there)"),
                         ("unrescored_utts", "words of the graph's language model (no lattice to rescore)"),
                         ("empty_audio_utts", "an empty hypothesis (no audio)")):
            names = report[key]
            if names:
                more = " ..." if len(names) > 5 else ""
                print(f"essence decode: {out}: {len(names)} of {report['num_utts']} utterances have "
                      f"{why}: {' '.join(names[:5])}{more}", file=sys.stderr)
