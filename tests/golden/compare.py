#!/usr/bin/env python3
"""Compares the %WER lines of a run with those that are stored here, within what machines differ by.

    tests/golden/compare.py exp/mini_tiny            # says what differs, and ends with 1
    tests/golden/compare.py --renew exp/mini_tiny    # stores these: after a change that is meant to change results
"""
import argparse
import json
import re
import sys
from pathlib import Path

LINE = re.compile(r"%WER \S+ \[ (\d+) / (\d+), .*\] .*/([^/]+)/decode_([^/]+)$")

# Points of WER over all sets of a system, and of the mean over systems. Another processor rounds otherwise, and then
# Gaussians split and weights go elsewhere: with PyTorch, oneDNN and NumPy held to SSE, the GMM came out 1.6 points off,
# networks 0.1 to 2.7, the mean 1.25. About twice that passes. On the same machine nothing should differ.
TOLERANCE = {"gmm": 4.0, "network": 6.0, "mean": 2.5}


def read(exp):
    """What was run (the first line of RESULTS), and {system: {set: [errors, words]}} of its %WER lines by utterance."""
    head, _, text = (Path(exp) / "RESULTS").read_text(encoding="utf-8").partition("\n")
    systems = {}
    for line in text.split("# By the rules of Hub5")[0].splitlines():
        match = LINE.match(line)
        if match:
            errors, words, system, name = match.groups()
            systems.setdefault(system, {})[name] = [int(errors), int(words)]
    return {"run": head.lstrip("# "), "systems": systems}


def differences(stored, found, tolerance=TOLERANCE):
    """Lines that name what differs; ``tolerance``: as TOLERANCE."""
    if stored["run"] != found["run"]:
        return [f"this is '{found['run']}', stored is '{stored['run']}'"]
    said = [f"{name}: {'not in this run' if name in stored['systems'] else 'not stored'}"
            for name in sorted(set(stored["systems"]) ^ set(found["systems"]))]
    changes = []
    for system in [name for name in stored["systems"] if name in found["systems"]]:
        old, new = stored["systems"][system], found["systems"][system]
        counts = [{name: words for name, (_, words) in sets.items()} for sets in (old, new)]
        if counts[0] != counts[1]:
            said.append(f"{system}: words of the sets are {counts[1]}, stored are {counts[0]}")
            continue
        before, now = (100 * sum(errors for errors, _ in sets.values()) / sum(counts[0].values())
                       for sets in (old, new))
        limit = tolerance.get(system, tolerance["network"])
        if abs(now - before) > limit:
            said.append(f"{system}: %WER {now:.2f} over all sets, stored is {before:.2f}, "
                        f"and machines differ by {limit} at most")
        changes.append(now - before)
    mean = sum(changes) / max(1, len(changes))
    if abs(mean) > tolerance["mean"]:
        said.append(f"systems have {mean:+.2f} points of WER on average, "
                    f"and machines differ by {tolerance['mean']} at most")
    return said


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--renew", action="store_true", help="store the figures of this run")
    parser.add_argument("exp", type=Path, help="directory of a finished run")
    args = parser.parse_args()
    path = Path(__file__).resolve().parent / f"{args.exp.resolve().name}.json"
    found = read(args.exp)
    if args.renew:
        rows = ",\n".join(f'  "{name}": {json.dumps(sets)}' for name, sets in found["systems"].items())
        path.write_text(f'{{"run": "{found["run"]}", "systems": {{\n{rows}}}}}\n', encoding="utf-8")
        return 0
    said = differences(json.loads(path.read_text(encoding="utf-8")), found)
    for line in said:
        print(f"{path.name}: {line}", file=sys.stderr)
    if not said:
        print(f"{args.exp}: the word error rates are those of {path.name}, within what machines differ by")
    return bool(said)


if __name__ == "__main__":
    sys.exit(main())
