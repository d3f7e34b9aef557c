"""Sweeps: errors of every (acoustic scale, word insertion penalty) of a grid, the best of them, and sweep.json.

A grid is a pair: word errors by (scale, penalty), and the number of reference words.
"""
from __future__ import annotations

import collections
import dataclasses
import json
import math
import operator
import sys
from pathlib import Path
from typing import Callable, Dict, List, Tuple

from essence_kd.decode.options import DecodeOptions
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import write_text

NEAR = 1.75  # lattices made at one acoustic scale serve a sweep whose best scale is at most this factor away

Grid = Tuple[Dict[Tuple[float, float], int], int]
# The grids of some jobs, given their numbers and, of each, the options with which it is decoded for its grid.
Points = Callable[[List[int], List[DecodeOptions]], List[Grid]]


def is_far(scale: float, other: float) -> bool:
    """Whether lattices that were made at one acoustic scale cannot tell what is found at the other."""
    return max(scale / other, other / scale) > NEAR


def sweep_lattices(points: Points, options: DecodeOptions, count: int, together: bool) -> list[Grid]:
    """Grids of ``count`` jobs, each from one lattice per utterance, made near the best scale (of each job, or of all).

    Lattices are made at the options' scale, with the sweep's output beam, and once more where the best is far away.
    """
    wide = dataclasses.replace(options, output_beam=options.sweep_output_beam)
    grids = points(list(range(count)), [wide] * count)
    best = _best_of(grids, together)
    far = [i for i, (scale, _) in enumerate(best) if is_far(scale, options.acoustic_scale)]
    if far:
        there = [dataclasses.replace(wide, acoustic_scale=best[i][0], word_insertion_penalty=best[i][1]) for i in far]
        for i, grid in zip(far, points(far, there)):
            grids[i] = grid
    return grids


def sweep_in_turn(points: Points, options: DecodeOptions, count: int, together: bool) -> list[Grid]:
    """Grids of ``count`` jobs, one setting after the other: what a decoder without lattices does.

    Every scale at the options' penalty, then every penalty at the best scale (of each job, or of all), then the scales
    beside it at the best penalty.
    """
    grids: list[Grid] = [({}, 0) for _ in range(count)]

    def add(settings):
        """Decode every job at its (scale, penalty); jobs whose setting is None or known are left out."""
        which = [i for i, setting in enumerate(settings) if setting is not None and setting not in grids[i][0]]
        single = [dataclasses.replace(options, sweep_scales=[settings[i][0]], sweep_penalties=[settings[i][1]])
                  for i in which]
        for i, (new, words) in zip(which, points(which, single)):
            grids[i] = ({**grids[i][0], **new}, words)

    scales = sorted(options.sweep_scales)
    for scale in scales:
        add([(scale, options.word_insertion_penalty)] * count)
    best = _best_of(grids, together)
    for penalty in options.sweep_penalties:
        add([(scale, penalty) for scale, _ in best])
    best = _best_of(grids, together)
    for step in (-1, 1):
        beside = [scales.index(scale) + step for scale, _ in best]
        add([(scales[at], setting[1]) if 0 <= at < len(scales) else None for at, setting in zip(beside, best)])
    return grids


def _best_of(grids: list[Grid], together: bool) -> list[tuple[float, float]]:
    """Best scale and penalty of each job, or the common best."""
    tables = [sweep_table(*pool(grids))] * len(grids) if together else [sweep_table(*grid) for grid in grids]
    return [(t["best"]["acoustic_scale"], t["best"]["word_insertion_penalty"]) for t in tables]


def pool(grids: list[Grid]) -> Grid:
    """Errors and reference words of all jobs together."""
    total: collections.Counter = collections.Counter()
    for points, _ in grids:
        total.update(points)
    return dict(total), sum(words for _, words in grids)


def sweep_table(errors: dict, words: int) -> dict:
    """Points sorted by scale and penalty, and the best: fewest errors, then the smallest penalty, then the scale.

    Among scales with equally few errors the middle one is taken.
    """
    points = [{"acoustic_scale": scale, "word_insertion_penalty": penalty, "errors": int(count),
               "wer": round(100.0 * count / words, 4) if words else None}
              for (scale, penalty), count in sorted(errors.items())]
    fewest = min(point["errors"] for point in points)
    ties = [point for point in points if point["errors"] == fewest]
    smallest = min(abs(point["word_insertion_penalty"]) for point in ties)
    ties = [point for point in ties if abs(point["word_insertion_penalty"]) == smallest]
    best = ties[(len(ties) - 1) // 2]

    def at_edge(key: str) -> bool:
        tried = sorted({point[key] for point in points})
        return len(tried) > 2 and best[key] in (tried[0], tried[-1])

    return {"reference_words": words, "best": best, "points": points, "scale_at_edge": at_edge("acoustic_scale"),
            "penalty_at_edge": at_edge("word_insertion_penalty")}


def write_sweep(path, table: dict, decoder: str, graph_path) -> None:
    """Write a sweep.json of this decoder and graph, and tell its best."""
    path, table = Path(path), {"decoder": decoder, "graph": str(graph_path), **table}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(table, indent=1) + "\n")
    best = table["best"]
    edge = " (at the edge of the grid: widen it)" if table["scale_at_edge"] or table["penalty_at_edge"] else ""
    print(f"essence decode: {path}: best of {len(table['points'])} settings: acoustic scale "
          f"{best['acoustic_scale']}, word insertion penalty {best['word_insertion_penalty']}: "
          f"{best['wer']:.2f} % WER{edge}", file=sys.stderr)


def _finite(value) -> float:
    """A number of a sweep.json. Raises ValueError, TypeError or OverflowError for anything else."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return float(value)


def read_best(path) -> dict:
    """The best point of a sweep.json; UserError where it is missing or something else."""
    try:
        best = json.loads(Path(path).read_text(encoding="utf-8"))["best"]
        return {key: _finite(best[key]) for key in ("acoustic_scale", "word_insertion_penalty")}
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such sweep; make it with 'essence decode --sweep TEXT'") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise UserError(f"{path}: not a sweep.json of 'essence decode --sweep'") from None


def pool_sweeps(paths, out) -> dict:
    """Add the errors of several sweep.json and write their common best to ``out``, a sweep.json too; returns it.

    Points that not all of them have are left out. An ``out`` that says the same already is not touched. Raises
    UserError for a file that is no sweep, and for sweeps that have no point in common.
    """
    grids = []
    for path in paths:
        read_best(path)
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        try:
            points = {(_finite(p["acoustic_scale"]), _finite(p["word_insertion_penalty"])): operator.index(p["errors"])
                      for p in table["points"]}
            grids.append((points, operator.index(table["reference_words"])))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise UserError(f"{path}: not a whole sweep.json of 'essence decode --sweep'") from None
    common = set.intersection(*(set(points) for points, _ in grids))
    if not common:
        raise UserError(f"{', '.join(map(str, paths))}: these sweeps have no setting in common; sweep them again")
    table = sweep_table(*pool([({p: n for p, n in points.items() if p in common}, words) for points, words in grids]))
    text = json.dumps(table, indent=1) + "\n"
    if not Path(out).is_file() or Path(out).read_text(encoding="utf-8") != text:
        write_text(out, text)
    return table
