"""Pruning of whole archives: dense or sparse posteriors in, essence targets and their sidecar out."""
from __future__ import annotations

from dataclasses import replace
from typing import Optional

from essence_kd.distill.archives import (CARRIED, Progress, Tally, check_kind, describe, frame_error,
                                         num_utterances, read_dense_or_sparse, sidecar_of, target_sidecar,
                                         write_essence)
from essence_kd.distill.essence import EssenceSettings, select, select_sparse
from essence_kd.distill.mass_rules import MASS_RULES
from essence_kd.io.errors import UserError
from essence_kd.io.kernels import kernels
from essence_kd.io.parallel import default_threads, in_turn
from essence_kd.io.posterior import Posterior, PosteriorWriter
from essence_kd.io.provenance import sidecar_path, write_sidecar
from essence_kd.io.sources import Truncated


def prune(rspecifier: str, wspecifier: str, settings: EssenceSettings, *, kind: Optional[str] = None,
          threads: Optional[int] = None, keep_temperature: bool = False) -> Tally:
    """Prune every utterance of a table (``kind``: prob, log, logit, post; None: recognised, matrices are prob).

    ``keep_temperature``: the result has the temperature of the source whatever the settings say. Writes the sidecar
    of ``wspecifier`` when that is a file. Raises UserError; nothing is left then.
    """
    rule, mass = settings.rule(), settings.mass_rule()
    if rule.needs_teachers:
        raise UserError(f"--select {rule.name} needs the teachers themselves: essence dump-post --fuse "
                        f"--select {rule.name}")
    source, target = sidecar_of(rspecifier), target_sidecar(wspecifier, rspecifier)
    temperature = float(source.get("temperature") or 1.0)
    if keep_temperature:
        settings = replace(settings, temperature=temperature)
    beside = sidecar_path(rspecifier)
    if rule.exact and source.get("selection") == rule.name and \
            source.get("k", 0) < min(rule.exact, source.get("num_pdfs") or rule.exact):
        raise UserError(f"{beside}: the archive holds {source['k']} classes per frame, "
                        f"--{rule.name} asks for {rule.exact}")
    rescaled = (source.get("mean_mass") is not None and source["mean_mass"] < 0.9999 and source.get("mass") is not None
                and MASS_RULES.get(source["mass"], str(beside)).rescales)
    if rescaled and not mass.scale_free:
        raise UserError(f"{beside}: the archive was scaled to mass 1 (it had {source['mean_mass']:.4f}); "
                        f"--mass {mass.name} needs one made with --mass keep")

    threads = max(1, threads or default_threads())
    tally, num_pdfs, most, least = Tally(), source.get("num_pdfs"), 0, None
    progress = Progress("prune-post", num_utterances(rspecifier))
    relative = replace(settings, temperature=settings.temperature / temperature)
    stored = kernels() is not None and kind in (None, "prob") and relative.temperature == 1

    def utterances():
        """What is read, each utterance fit for the ones before it."""
        nonlocal num_pdfs
        for utt, value in read_dense_or_sparse(rspecifier, stored):
            check_kind(rspecifier, utt, isinstance(value, Posterior), kind)
            if not isinstance(value, Posterior) and all(value.shape):
                if num_pdfs not in (None, value.shape[1]):
                    told = f" ({beside})" if "num_pdfs" in source else ""
                    raise frame_error(rspecifier, utt, ValueError(f"{value.shape[1]} columns, but there are {num_pdfs} "
                                                                  f"pdfs{told}"))
                num_pdfs = value.shape[1]
            yield utt, value

    def prune_one(item):
        """(utterance, essence, the fewest and the most entries that a frame had)."""
        utt, value = item
        try:
            if not isinstance(value, Posterior):
                return utt, select(value, relative, kind=kind or "prob", utt=utt, threads=1), None
            value = value.as_targets(source.get("num_pdfs"))
            essence = select_sparse(value.offsets, value.ids, value.probs, settings, utt=utt,
                                    source_temperature=temperature)
        except (ValueError, Truncated) as error:
            raise frame_error(rspecifier, utt, error) from None
        counts = value.counts()
        return utt, essence, (counts.min(), counts.max()) if len(counts) else None

    with PosteriorWriter(wspecifier, num_pdfs=num_pdfs) as writer:
        for utt, essence, counts in in_turn(prune_one, utterances(), threads):
            if counts is not None:
                least = counts[0] if least is None else min(least, counts[0])
                most = max(most, counts[1])
            write_essence(writer, utt, essence)
            tally.add(len(essence.kept), len(essence.ids), essence.kept)
            progress.show(tally)
        if not tally.num_utts:
            raise UserError(f"{rspecifier}: holds no utterance")
        if rule.exact and most and most == least and most < min(rule.exact, num_pdfs or 1 << 31):
            raise UserError(f"{rspecifier}: holds {most} classes per frame, --{rule.name} asks for {rule.exact}")
    if target is not None:
        fields = {name: source[name] for name in CARRIED if name in source}
        fields.update(describe(settings), **tally.fields(), kind="essence", source=rspecifier,
                      form="compact" if writer.compact else "kaldi")
        fields["num_pdfs"] = num_pdfs
        if rescaled:
            fields["mean_mass"] = None  # what the source lost is not known frame by frame
        write_sidecar(target, fields)
    return tally
