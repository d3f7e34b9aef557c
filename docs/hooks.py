"""What MkDocs adds to docs/ when it makes the site (mkdocs.yml).

- README.md of the checkout as the first page, and other Markdown files outside docs/ that pages name.
- commands.md: ``essence VERB --help`` of every verb.
- reference.md: every name that ``from essence_kd import ...`` has, by its docstring.
"""
from __future__ import annotations

import importlib
import os
import re
from pathlib import Path

from griffe import Extension
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {**{path.name: path.name for path in ROOT.glob("*.md")}, "README.md": "index.md",
           "tests/README.md": "tests/README.md"}


def on_config(config):
    """Pages of the checkout's own folder that mkdocs.yml does not name come last."""
    config.nav[-1]["Background"].extend(page for page in sorted(OUTSIDE.values()) if "/" not in page
                                        and page not in ("index.md", "SECURITY.md"))
    return config


class Examples(Extension):
    """The examples of docstrings (``>>> ...``) as blocks of code."""

    def on_object(self, *, obj, **_) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"((?:^>>>.*\n)(?:^.+\n?)*)", r"```pycon\n\1\n```\n",
                                         obj.docstring.value + "\n", flags=re.M)


def on_files(files, config):
    """Adds the pages that are not files of docs/."""
    for source, page in OUTSIDE.items():
        alone = "---\nhide: [navigation]\n---\n" if page == "index.md" else ""
        files.append(File.generated(config, page, content=alone + moved(source, page)))
    files.append(File.generated(config, "commands.md", content=commands()))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links of docs/ to files outside of it."""
    here = Path("docs", page.file.src_uri).parent
    return relinked(markdown, here, page.file.src_uri) if page.file.generated_by is None else markdown


def moved(source: str, page: str) -> str:
    """The text of a file outside docs/, its links as the page has them."""
    return relinked((ROOT / source).read_text(encoding="utf-8"), Path(source).parent, page)


def relinked(text: str, folder: Path, page: str) -> str:
    """Links that are relative to ``folder`` of the checkout, as the page needs them; those to what the site does not
    have become their text."""
    def link(match: re.Match) -> str:
        words, target = match.group(1), match.group(2)
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return match.group(0)
        found = os.path.normpath(folder / path)
        if found.startswith("docs/") and (ROOT / found).is_file():
            place = found[len("docs/"):]
        elif found in OUTSIDE:
            place = OUTSIDE[found]
        else:
            return words
        return f"[{words}]({os.path.relpath(place, Path(page).parent)}{'#' * bool(anchor)}{anchor})"

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", link, text)


def commands() -> str:
    """The help of every verb, as the command prints it."""
    from essence_kd.cli.main import verb_parser, verbs

    os.environ["COLUMNS"] = "100"
    lines = ["# Commands", "",
             "What `essence VERB --help` prints. Options may stand anywhere among the arguments. "
             "Tables are named as in Kaldi ([formats](formats.md#tables)).", ""]
    for verb in verbs():
        module = importlib.import_module(f"essence_kd.cli.{verb.replace('-', '_')}")
        lines += [f"## {verb}", "", module.HELP[0].upper() + module.HELP[1:] + ".", "", "```text",
                  verb_parser(verb, module).format_help().rstrip(), "```", ""]
    return "\n".join(lines)


def reference() -> str:
    """Every public name, under the module that it comes from."""
    import essence_kd

    lines = ["# Python API, every name", "", "All of these are imported with `from essence_kd import NAME`. "
             "[Python API](api.md) shows how they are used together.", ""]
    for home, names in essence_kd._HOMES.items():
        lines += [f"## {home}", ""]
        for name in names:
            lines += [f"::: essence_kd.{home}.{name}", ""]
    lines += ["## decode", "", "::: essence_kd.decode.Package.__call__", ""]
    return "\n".join(lines)
