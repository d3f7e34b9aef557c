"""Archives of essence or posteriors that jobs wrote side by side, as one table."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from essence_kd.distill.archives import sidecar_of
from essence_kd.io.errors import UserError
from essence_kd.io.provenance import check_match, read_sidecar, sidecar_path, write_sidecar, write_text
from essence_kd.io.specifiers import read_scp
from essence_kd.io.text import read_lines, split

FLOOR = 0.95  # share of the utterances that must be there
SUMMED = ("num_utts", "num_frames", "num_entries")
OWN = (*SUMMED, "mean_mass", "models", "source", "tool_version")  # may differ from job to job


def join(scps: Sequence[str], out: str | Path, *, ali_dir: Optional[str] = None, utts: Optional[str] = None,
         models: Sequence[str] = (), frame_shift_ms: Optional[float] = None) -> Dict[str, Any]:
    """Write OUT/post.scp and essence.json, or OUT and its sidecar where that is an scp; returns the sidecar's fields.

    The parts must have been made alike and hold each utterance once. ``ali_dir`` adds tree_hash and refuses another
    number of pdfs; ``utts`` (a file with utterances first in its lines) is what should be there: under 95 % is refused.
    """
    out = Path(out) if str(out).endswith(".scp") else Path(out) / "post.scp"
    lines: List[str] = []
    seen: Dict[str, str] = {}
    fields: Dict[str, Any] = {}
    masses: List[Optional[float]] = []  # of the frames of a part together; None where it does not know
    for scp in scps:
        mine = sidecar_of(f"scp:{scp}")
        if not mine:
            raise UserError(f"{scp}: its sidecar is missing: the job that writes it did not end well; run it again")
        for key in SUMMED:
            if mine.get(key) is None:
                raise UserError(f"{sidecar_path(f'scp:{scp}')}: says nothing of {key}; run the job that writes "
                                f"{scp} again")
        if fields:
            check_match(sidecar_path(f"scp:{scps[0]}"), fields, sidecar_path(f"scp:{scp}"), mine,
                        [key for key in mine if key not in OWN])
        for number, utt, place, span in read_scp(scp):
            if utt in seen:
                raise UserError(f"{scp}: line {number}: utterance {utt} is in {seen[utt]}, too")
            seen[utt] = scp
            lines.append(f"{utt} {place}{f'[{span}]' if span else ''}\n")
        mean = mine.get("mean_mass") if mine["num_frames"] else 0.0
        masses.append(None if mean is None else mean * mine["num_frames"])
        fields = {**mine, **{key: mine[key] + fields.get(key, 0) for key in SUMMED}}
    if not fields.get("num_frames"):
        raise UserError(f"{', '.join(scps)}: no frame in all of them")
    fields["mean_mass"] = None if None in masses else sum(masses) / fields["num_frames"]
    if frame_shift_ms is not None:
        fields.setdefault("frame_shift_ms", frame_shift_ms)
    if models:
        fields["models"] = [{"name": name} for name in models]
    if ali_dir is not None:
        ali = Path(ali_dir) / "ali.json"
        known = read_sidecar(ali)
        for key in ("num_pdfs", "tree_hash"):
            if known.get(key) is None:
                raise UserError(f"{ali}: says nothing of {key}; align again")
        told = {key: value for key, value in fields.items() if value is not None}
        check_match(sidecar_path(f"scp:{scps[0]}"), told, ali, known, ["num_pdfs", "tree_hash"])
        fields.update(num_pdfs=known["num_pdfs"], tree_hash=known["tree_hash"])
    if utts is not None:
        wanted = [split(line)[0] for _, line in read_lines(utts)]
        missing = [utt for utt in wanted if utt not in seen]
        if len(missing) > (1 - FLOOR) * len(wanted):
            raise UserError(f"{out.parent}: targets of {len(wanted) - len(missing)} of the {len(wanted)} "
                            f"utterances of {utts} (the first without: {missing[0]}); under {FLOOR:.0%} is "
                            "taken for a mistake")
        if missing:
            print(f"join-post: {len(missing)} of {len(wanted)} utterances of {utts} have no targets", file=sys.stderr)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, "".join(sorted(lines)))
    write_sidecar(sidecar_path(f"scp:{out}"), fields)
    return fields
