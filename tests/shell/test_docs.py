"""README and docs name only verbs, options, scripts, files and headings that there are."""
from __future__ import annotations

import argparse
import importlib
import re

import pytest
from builders import ROOT

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTES = sorted((ROOT / "docs" / "lab-notes").glob("*.md"))  # dated: options and files may be gone since
CLI = ROOT / "pytools" / "essence_kd" / "cli"
OTHERS = ("local/nnet3/", "local/chain/", "local/chain2/")  # of Kaldi's recipes


def code(text):
    """Commands of code blocks (continued lines joined) and code spans, what is quoted in them left out."""
    text = text.replace("\\\n", " ")
    fenced = r"```.*?\n(.*?)```"
    lines = [line for block in re.findall(fenced, text, re.S) for line in block.splitlines()]
    text = re.sub(fenced, "", text, flags=re.S)
    lines += re.findall(r"^    (.+)$", text, re.M) + [" ".join(s.split()) for s in re.findall(r"`([^`]+)`", text)]
    lines = [re.sub(r"'[^']*'|\"[^\"]*\"", "''", line).split(" -- ")[0] for line in lines]
    return [part.strip() for line in lines for part in re.split(r"[|;#]|&&", line)]


def options(words):
    return set(re.findall(r"(?<!\S)\[?(--[a-z][a-z0-9-]*)", words))


@pytest.mark.parametrize("doc", DOCS, ids=lambda p: p.name)
def test_verbs_and_their_options(doc):
    for line in code(doc.read_text(encoding="utf-8")):
        match = re.match(r"(?:\S*/)?essence ([a-z][a-z-]+)(.*)", line)
        if match:
            verb, parser = match.group(1), argparse.ArgumentParser()
            assert (CLI / f"{verb.replace('-', '_')}.py").exists(), line
            importlib.import_module(f"essence_kd.cli.{verb.replace('-', '_')}").add_arguments(parser)
            assert options(match.group(2)) <= {o for action in parser._actions for o in action.option_strings}, line


@pytest.mark.parametrize("doc", DOCS, ids=lambda p: p.name)
def test_scripts_and_their_options(doc):
    seen = 0
    for line in code(doc.read_text(encoding="utf-8")):
        match = re.match(r"(?:KALDI_ROOT=\S+ )?(?:\./|\$?\w+/)?((?:run|(?:local|recipes)/[\w/]+)\.sh)\b(.*)", line)
        if match and not re.search("[A-Z]{3}", match.group(1)) and not match.group(1).startswith(OTHERS):
            script = (ROOT / match.group(1)).read_text(encoding="utf-8")
            known = set(re.findall(r"^([a-z_]+)=", script, re.M)) | {"help", "config"}
            if match.group(1) == "run.sh":  # options of recipes, which run.sh takes, too
                known |= {name for conf in (ROOT / "recipes").glob("*/recipe.conf")
                          for declared in re.findall(r'^options="([^"]*)"', conf.read_text(encoding="utf-8"), re.M)
                          for name in declared.split()}
            if match.group(1) != "local/slurm.sh":
                assert {o[2:].replace("-", "_") for o in options(match.group(2))} <= known, line
            seen += 1
    assert seen or doc.name not in ("README.md", "plugin.md")


@pytest.mark.parametrize("doc", [d for d in DOCS if d.name != "related-work.md"], ids=lambda p: p.name)  # theirs
def test_files(doc):
    text = doc.read_text(encoding="utf-8")
    folders = "local|conf|recipes|tests|benchmarks|pytools|docs"
    for name in re.findall(rf"(?<![\w./$-])((?:{folders})/[\w./*-]*\w)", " ".join(code(text))):
        assert re.search("[A-Z]{3}", name) or name.startswith(OTHERS) or any(ROOT.glob(name)), name


@pytest.mark.parametrize("doc", DOCS + NOTES, ids=lambda p: p.name)
def test_links(doc):
    text = doc.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        name, _, heading = target.partition("#")
        other = doc.parent / name if name else doc
        assert other.exists(), target
        headings = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.M) if heading else []
        assert not heading or heading in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings], target


def test_readme_is_short_and_every_lab_note_is_listed():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
    index = (ROOT / "docs" / "lab-notes" / "README.md").read_text(encoding="utf-8")
    assert [note.name for note in NOTES if note.name != "README.md" and f"({note.name})" not in index] == []


@pytest.mark.parametrize("doc", DOCS + NOTES, ids=lambda p: p.name)
def test_lines_of_prose_are_at_most_120_characters(doc):
    text = re.sub(r"(?s)```.*?```", lambda block: "\n" * block.group().count("\n"), doc.read_text(encoding="utf-8"))
    assert [n for n, line in enumerate(text.splitlines(), 1)
            if len(line) > 120 and not line.startswith(("|", "    "))] == []


def test_a_rate_says_per():
    """20 classes per frame, not 20 classes a frame: in documents, and in what the programs say."""
    what = "bytes|classes|disk|entries|frames|ids|lines|nats|rows|samples|seconds|states|time|utterances|words"
    each = "batch|entry|epoch|feature frame|file|frame|line|row|second|sentence|stage|step|utterance"
    rate = re.compile(rf"\b({what}) an? ({each})\b", re.I)
    files = [*DOCS, *NOTES, *ROOT.glob("*.md"), *(ROOT / "examples").glob("*.ipynb"), *(ROOT / "pytools").rglob("*.py"),
             *(ROOT / "pytools").rglob("*.c"), *(ROOT / "pytools").rglob("*.html"), *(ROOT / "local").rglob("*.sh"),
             *(ROOT / "recipes").rglob("*.sh"), *(ROOT / "conf").rglob("*.yaml"), ROOT / "run.sh"]
    found = [f"{path}: {match.group()}" for path in files for match in rate.finditer(path.read_text(encoding="utf-8"))]
    assert found == []


def test_figures_of_the_readme_are_those_of_the_results():
    """Each row of README's result table, and each interval, is one of docs/results.md, whose first is of RESULTS."""
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").replace("−", "-")
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("−", "-").partition("## The result")[2]
    rows = re.findall(r"^\|.*\d.*\|$", readme.partition("\n## ")[0], re.M)
    number, whole = r"[-+]?\d+\.\d", r"(?<![\w.,])\d+\.\d\b(?! M)"
    triple = rf"({number}\d*) \[({number}\d*), ({number}\d*)\]"

    def rounds(short, long):
        return len(short) == len(long) and all(abs(float(s) - float(g)) < 0.0501 for s, g in zip(short, long))

    tables = [re.findall(r"(?<![\w.,])\d+\.\d\d(?=\*{0,2} \|)", row) for row in re.findall(r"^\|.*\|$", results, re.M)]
    measured = re.findall(triple, results)
    assert len(rows) > 3
    for row in rows:
        rates = re.findall(whole, re.sub(triple, "", row))
        assert any(rounds(rates, table[-len(rates):]) for table in tables), row
        for interval in re.findall(triple, row):
            assert any(rounds(interval, other) for other in measured), (interval, row)
    printed = (ROOT / "recipes" / "mini" / "RESULTS").read_text(encoding="utf-8")
    first = results.partition("How good is each system?")[2].partition("./run.sh")[0]
    for system, parameters, *rates in re.findall(r"^\| (\w+) .*?\| ([\d,]+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$",
                                                 first, re.M):
        sets = ("/decode_dev", "/decode_eval_swbd", "/decode_eval_che", " (total of eval_swbd and eval_che)")
        for rate, where in zip(rates, sets):
            assert re.search(rf"^%WER {rate} .* exp/mini/{system}{re.escape(where)}$", printed, re.M), (system, rate)
        assert re.search(rf"^{system} +{parameters} ", printed, re.M), (system, parameters)
