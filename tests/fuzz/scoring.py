"""Scoring: STM, CTM, mapping rules, transcripts with alternatives."""
from __future__ import annotations

import numpy as np

from essence_kd.score.alternatives import align_networks, count_steps, parse_network
from essence_kd.score.glm import load_filters
from essence_kd.score.hub5 import as_swbd, check_recordings, read_ctm, read_stm, score_stm, score_text
from fuzz.driver import SEPARATOR, file, target


@target
def stm(data: bytes) -> None:
    """An STM file, scored against nothing."""
    segments = read_stm(file(data, "stm"))
    for segment in segments:
        assert 0 <= segment.start <= segment.end and np.isfinite([segment.start, segment.end]).all()
    ref_filter, hyp_filter = load_filters(None)
    for score in score_stm(segments, [], ref_filter, hyp_filter):
        assert score.counts.ins == score.counts.sub == 0


@target
def ctm(data: bytes) -> None:
    """An STM and a CTM file."""
    reference, _, hypothesis = data.partition(SEPARATOR)
    stm_path, ctm_path = file(reference, "stm"), file(hypothesis, "ctm")
    tokens = read_ctm(ctm_path)
    for token in tokens:
        assert token.word and token.start >= 0 and np.isfinite([token.start, token.duration]).all()
    tokens = as_swbd(tokens)
    segments = read_stm(stm_path)
    check_recordings(segments, tokens, stm_path, ctm_path)
    ref_filter, hyp_filter = load_filters(None)
    for score in score_stm(segments, tokens, ref_filter, hyp_filter):
        assert min(score.counts.ins, score.counts.dels, score.counts.sub) >= 0


@target
def glm(data: bytes) -> None:
    """Mapping rules, and a line that goes through them."""
    rules, _, line = data.partition(SEPARATOR)
    for rewrite in load_filters(file(rules, "glm")):
        rewrite(line.decode("utf-8", "replace")[:500])


@target
def alternatives(data: bytes) -> None:
    """Transcripts with alternatives and optional words, a reference and a hypothesis."""
    ref, _, hyp = data.decode("utf-8", "replace").partition("\n")
    ref, hyp = ref[:300], hyp[:300].replace("\n", " ")
    steps = align_networks(parse_network(ref), parse_network(hyp))
    counted = count_steps(steps)
    assert counted.words >= 0
    same = count_steps(align_networks(parse_network(ref), parse_network(ref)))
    assert same.errors == 0
    score_text({"a": ref}, {"a": hyp}, drop_noise=True)
