"""lhotse Shar: training data as a few large files that are read from front to back, for a cluster's shared disk.

A folder of shards holds ``train/`` (and ``heldout/``, for the dev loss), each of them lhotse's Shar format: shard n is
``cuts.n.jsonl.gz`` and a tar file each of ``features``, ``alignment`` (pdf-ids of 10 ms), and ``soft_ids`` and
``soft_probs`` where there are soft targets (dense ones: ``soft_probs`` alone). Utterances without transcripts are
shuffled among those of ``train/``; their alignment is -1 at each frame. Beside them lie ``shards.json``, which
is written last, ``utterances`` (a line per utterance, in the order of the shards: set, shard, frames, id; the first set
without transcripts is untranscribed_1) and the alignment's num_pdfs, priors.txt and tree.txt: the folder stands for the
data and the alignment directory at once.
"""
from __future__ import annotations

import json
import operator
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

from essence_kd.am.cmn import Cmn, OnlineMean, without_mean
from essence_kd.am.settings import ShardSettings
from essence_kd.am.sources import FeatureSource, SourceOfSets, load_cuts, split_heldout
from essence_kd.am.targets import TargetsOfSets, attach_alignments, open_soft, open_untranscribed, read_count
from essence_kd.distill.losses import UNLABELLED
from essence_kd.hmm.alignment_dir import tree_hash
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import sha256_file, write_sidecar, write_text
from essence_kd.io.recordings import sample_rate_of
from essence_kd.io.tables import IntVectorTable
from essence_kd.io.text import read_lines

INDEX = "shards.json"
SETS = ("train", "heldout")
UNTRANSCRIBED = "untranscribed_"  # and a number: the sets in ``utterances`` that lie in the shards of train
FIELDS = ("alignment", "features", "soft_ids", "soft_probs")


def is_sharded(path) -> bool:
    """Whether a folder holds shards and not a Kaldi data directory. Raises UserError where shards have no index."""
    whole = (Path(path) / INDEX).is_file()
    if not whole and (Path(path) / SETS[0] / "cuts.000000.jsonl.gz").is_file():
        raise UserError(f"{path}: shards without {INDEX}: 'essence shard' did not come to its end; remove them, and "
                        "make them again")
    return whole


def write_shards(data_dir, ali_dir, out_dir, **options) -> dict:
    """Write the utterances of a data directory that have alignments as shards, shuffled; returns shards.json's fields.

    ``options``: fields of :class:`~essence_kd.am.settings.ShardSettings`.

    Raises:
        UserError: what does not fit (as in training), a shard size below 1, an output folder that is in use.
    """
    from lhotse.shar import SharWriter

    s, data_dir, ali_dir, out = ShardSettings(**options), Path(data_dir), Path(ali_dir), Path(out_dir)
    factor = s.frame_subsampling_factor
    if s.shard_size < 1:
        raise UserError(f"--shard-size is {s.shard_size}, but must be at least 1")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty; name another folder or remove it")
    num_pdfs = read_count(ali_dir / "num_pdfs")
    fields = {"num_pdfs": num_pdfs, "tree_hash": tree_hash(ali_dir), "sample_rate": sample_rate_of(data_dir),
              "frame_subsampling_factor": factor, "soft": None}
    cuts, _, without = attach_alignments(load_cuts(data_dir / "feats.scp"), ali_dir, num_pdfs, factor)
    sources, added = [FeatureSource(cuts, "none")], []
    targets: Any = None
    if s.soft is not None:
        targets, temperature, _ = open_soft(s.soft, s.soft_kind, ali_dir, factor)
        fields["soft"] = {"kind": s.soft_kind, "temperature": temperature}
        added = open_untranscribed(s.untranscribed or (), data_dir, cuts, ali_dir, soft=(temperature, s.soft),
                                   kind=s.soft_kind, factor=factor, min_confidence=s.min_confidence)
    if added:
        sources += [FeatureSource(more.cuts, "none") for more in added]
        targets = TargetsOfSets([targets, *(more.targets for more in added)], [part.ids for part in sources])
        fields.update(untranscribed_sets=len(added), untranscribed=sum(len(more.cuts) for more in added),
                      left_out=sum(more.left_out for more in added))
    source = SourceOfSets(sources)
    sets = dict(zip(SETS, split_heldout(cuts, s.heldout)))
    sets[SETS[0]] = [*sets[SETS[0]], *range(len(cuts), len(source))]
    alignments = IntVectorTable(str(ali_dir / "ali.scp"))
    kinds = {"features": "numpy", "alignment": "numpy"}
    if targets is not None:
        kinds.update({"soft_probs": "numpy"} if targets.dense else {"soft_ids": "numpy", "soft_probs": "numpy"})
    lines, frames = [], 0
    for name, positions in sets.items():
        if not positions:
            continue
        (out / name).mkdir(parents=True)
        order = np.random.default_rng(s.seed).permutation(positions)
        with SharWriter(str((out / name).absolute()), fields=kinds, shard_size=s.shard_size,
                        warn_unused_fields=False) as writer:
            for number, i in enumerate(order):
                cut, set_of = source.cut(i), int(source.set_of[i])
                count = cut.features.num_frames
                arrays = {"alignment": np.full(count, UNLABELLED, np.int32) if set_of else
                          np.asarray(alignments[cut.id], dtype=np.int32)}
                if targets is not None:
                    read = targets.read(cut.id, -(-count // factor), num_pdfs)
                    names = ("soft_probs",) if targets.dense else ("soft_ids", "soft_probs")
                    arrays.update(zip(names, (read,) if targets.dense else read))
                source.raw(i)  # raises what is wrong with the features
                for field, array in arrays.items():
                    cut = cut.attach_tensor(field, array)
                writer.write(cut)
                told = UNTRANSCRIBED + str(set_of) if set_of else name
                lines.append(f"{told} {number // s.shard_size} {count} {cut.id}\n")
                frames += count
    for name in ("num_pdfs", "priors.txt", "tree.txt"):
        if (ali_dir / name).is_file():
            write_text(out / name, (ali_dir / name).read_text(encoding="utf-8"))
    write_text(out / "utterances", "".join(lines))
    fields.update(utterances=len(source), without_alignment=without, frames=frames, shard_size=s.shard_size,
                  feat_dim=cuts.feat_dim, utterances_sha256=sha256_file(out / "utterances"), seed=s.seed)
    write_sidecar(out / INDEX, fields)
    return fields


class ShardSource:
    """Features, labels and soft targets of a set's utterances by position; a shard is read whole and kept a while.

    What :class:`~essence_kd.am.sources.SourceOfSets` is to data directories. ``shard`` (N,) int64 has the shard of
    each utterance, ascending.
    """

    mixer = None  # noise is for sources of audio

    def __init__(self, folder, name: str, cmn: Cmn, keep: int, share: Tuple[int, int] = (0, 1)) -> None:
        """``name``: train or heldout; ``keep``: shards in memory at a time; ``share``: (rank, n), every n-th shard."""
        if not isinstance(cmn, OnlineMean) and cmn not in ("none", "utterance"):
            raise UserError(f"data.cmn: '{cmn}' cannot be had from shards, in which a speaker's utterances lie far "
                            "apart; there is none, utterance and online")
        self.folder, self.name, self.cmn, self.keep = Path(folder), name, cmn, keep
        self.feat_dim = read_index(folder)["feat_dim"]
        try:
            rows = [line.split(" ", 3) for _, line in read_lines(self.folder / "utterances")]
            rows = [row for row in rows if (row[0] == name or name == SETS[0] and row[0].startswith(UNTRANSCRIBED))
                    and int(row[1]) % share[1] == share[0]]
            self.ids = [row[3] for row in rows]
            self.set_of = np.array([0 if row[0] == name else int(row[0][len(UNTRANSCRIBED):]) for row in rows],
                                   dtype=np.int64)
            self.shard = np.array([int(row[1]) for row in rows], dtype=np.int64)
            self.frames = np.array([int(row[2]) for row in rows], dtype=np.int64)
        except (ValueError, IndexError, OverflowError):
            raise UserError(f"{self.folder / 'utterances'}: a line is not 'SET SHARD FRAMES UTTERANCE'; make the "
                            "shards again") from None
        self._kept: "OrderedDict[int, List[Dict[str, np.ndarray]]]" = OrderedDict()

    def __len__(self) -> int:
        return len(self.ids)

    def raw(self, i: int) -> np.ndarray:
        """The stored features of utterance i, (T, F) float32."""
        return self._item(i)["features"]

    def load(self, i: int) -> np.ndarray:
        """Features of utterance i, (T, F) float32, mean removed."""
        return without_mean(self.raw(i), self.cmn)

    def labels(self, i: int, factor: int) -> np.ndarray:
        """pdf-ids (R,) int32 of utterance i."""
        return self._item(i)["alignment"][::factor].astype(np.int32)

    def soft(self, i: int):
        """(ids, probs) or dense probabilities of utterance i."""
        item = self._item(i)
        return (item["soft_ids"], item["soft_probs"]) if "soft_ids" in item else item["soft_probs"]

    def _item(self, i: int) -> Dict[str, np.ndarray]:
        shard = int(self.shard[i])
        if shard not in self._kept:
            self._kept[shard] = self._read(shard)
            while len(self._kept) > self.keep:
                self._kept.popitem(last=False)
        return self._kept[shard][i - int(np.searchsorted(self.shard, shard))]

    def _read(self, shard: int) -> List[Dict[str, np.ndarray]]:
        """Every utterance of a shard, in order."""
        from lhotse.shar import LazySharIterator

        folder = (self.folder / self.name).absolute()  # for lhotse, a name that begins with "pipe:" is a command
        places = [folder / f"cuts.{shard:06d}.jsonl.gz", *(folder / f"{name}.{shard:06d}.tar" for name in FIELDS)]
        fields = {path.name.split(".")[0]: [str(path)] for path in places if path.is_file()}
        wanted = [self.ids[i] for i in np.flatnonzero(self.shard == shard)]
        items = []
        try:
            for cut in LazySharIterator(fields=fields):
                items.append({name: _stored(cut, name) for name in fields if name != "cuts"})
                if cut.id != wanted[len(items) - 1]:
                    break
        except Exception as error:  # tarfile, gzip, json and lhotse raise many kinds
            said = " ".join(str(error).split())[:200]  # lhotse may print a whole array
            raise UserError(f"{folder}: shard {shard:06d} cannot be read ({type(error).__name__}: {said}); "
                            "make the shards again") from None
        if len(items) != len(wanted) or cut.id != wanted[-1]:
            raise UserError(f"{folder}: shard {shard:06d} does not hold the utterances that "
                            f"{self.folder / 'utterances'} says; make the shards again")
        return items


def _stored(cut, name: str) -> np.ndarray:
    """An array that lies in the shard itself. Manifests may name files, URLs and commands, which are not read."""
    from lhotse import MonoCut

    manifest = getattr(cut, name)
    kind = getattr(getattr(manifest, "array", manifest), "storage_type", None)
    if type(cut) is not MonoCut or kind not in ("memory_npy", "memory_lilcom"):
        raise ValueError(f"the {name} of {cut.id} lie elsewhere")
    return np.asarray(getattr(cut, f"load_{name}")())


class ShardTargets:
    """Soft targets that lie in the shards, by utterance; they were checked when the shards were made."""

    def __init__(self, source: ShardSource, dense: bool) -> None:
        self.source, self.dense = source, dense
        self._position = {utt: i for i, utt in enumerate(source.ids)}

    def read(self, utt: str, rows: int, num_pdfs: int):
        """(ids (R, k) int32, probs (R, k) float32), or probs (R, C) float32 when dense."""
        return self.source.soft(self._position[utt])


def read_index(folder) -> dict:
    """The fields of shards.json, which must belong to ``utterances`` beside it."""
    folder = Path(folder)
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        whole = index["utterances_sha256"] == sha256_file(folder / "utterances")
        if not 0 < operator.index(index["feat_dim"]) < 1 << 31:
            raise ValueError("no dimension")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / INDEX}: not an index of shards ({type(error).__name__}); make the shards again") \
            from None
    if not whole:
        raise UserError(f"{folder / 'utterances'}: is not the one that {folder / INDEX} was written with")
    return index
