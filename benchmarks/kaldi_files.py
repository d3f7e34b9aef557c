"""Models of this project in the text forms that Kaldi's programs read."""
from __future__ import annotations

import numpy as np


def transition_model_text(topo: dict, rows: list) -> str:
    """Kaldi's TransitionModel. topo: phone-id -> for each state (next state, probability) pairs; rows, sorted:
    (phone-id, state, pdf-id), or (phone-id, state, pdf-id, pdf-id of the self-loop) as in chain models.

    Probabilities are those of ``topo``.
    """
    apart = len(rows[0]) == 4
    classes = "<ForwardPdfClass> {0} <SelfLoopPdfClass> {1}" if apart else "<PdfClass> {0}"
    lines = ["<TransitionModel> ", "<Topology> "]
    for phone, states in topo.items():
        lines += ["<TopologyEntry> ", "<ForPhones> ", f"{phone} ", "</ForPhones> "]
        for number, arcs in enumerate(states):
            text = " ".join(f"<Transition> {dst} {prob}" for dst, prob in arcs)
            lines.append(f"<State> {number} {classes.format(number, number + 1)} {text} </State> ")
        lines += [f"<State> {len(states)} </State> ", "</TopologyEntry> "]
    kind = "Tuples" if apart else "Triples"
    lines += ["</Topology> ", f"<{kind}> {len(rows)} "] + [" ".join(map(str, row)) + " " for row in rows]
    log_probs = ["0"] + [f"{np.log(prob):.9g}" for row in rows for _, prob in topo[row[0]][row[1]]]
    return "\n".join([*lines, f"</{kind}> ", "<LogProbs> ", f" [ {' '.join(log_probs)} ]", "</LogProbs> ",
                      "</TransitionModel> ", ""])
