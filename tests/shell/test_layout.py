"""Rules of the code that a machine can check: imports flow one way, importing does nothing, help is there."""
import ast
import shutil
import subprocess
import sys
import tarfile

import pytest
from builders import ROOT

PACKAGE = ROOT / "pytools" / "essence_kd"
SUBPACKAGES = ["io", "corpus", "hmm", "distill", "am", "decode", "export", "plan", "score", "cli"]
FILES = sorted(PACKAGE.rglob("*.py"))
VERBS = sorted(p.stem.replace("_", "-") for p in (PACKAGE / "cli").glob("*.py") if p.stem not in ("__init__", "main"))


def subpackage_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_flow_one_way(path):
    subpackage = subpackage_of(path)
    if subpackage is None:
        return  # __init__ and __main__
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its subpackage"
            names = [f"{node.module}.{a.name}" for a in node.names]
        else:
            continue
        for name in names:
            if name.startswith("essence_kd."):
                target = name.split(".")[1]
                if target in SUBPACKAGES:
                    assert SUBPACKAGES.index(target) <= SUBPACKAGES.index(subpackage), f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_python_3_9_understands_it(path):
    """No newer syntax, and no ``X | None`` but in annotations, which are never evaluated."""
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    annotations = {id(part) for node in ast.walk(tree) for note in
                   (getattr(node, "annotation", None), getattr(node, "returns", None)) if note is not None
                   for part in ast.walk(note)}
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and id(node) not in annotations:
            assert not any(isinstance(side, ast.Constant) and side.value is None for side in (node.left, node.right)), \
                f"{path}, line {node.lineno}: a union with None that Python 3.9 cannot evaluate; write Optional"


def test_lines_are_at_most_120_characters():
    """In all code; not in data, what a run printed, tables and notebooks."""
    paths = [ROOT / ".ci" / "run", ROOT / "Dockerfile", ROOT / "local" / "bin" / "essence", *ROOT.glob("*.sh"),
             *ROOT.glob("*.py"), *ROOT.glob("*.toml"), *ROOT.glob("*.yml"), *(ROOT / "docs").glob("*.*y"),
             *(ROOT / "docs").glob("*.sh")]
    for folder in (".github", "pytools", "tests", "benchmarks", "recipes", "local", "conf", "examples"):
        paths += [path for kind in ("py", "sh", "sbatch", "html", "yml", "yaml", "conf")
                  for path in (ROOT / folder).rglob(f"*.{kind}")]
    assert len(paths) > 350
    long = [f"{path.relative_to(ROOT)}, line {number}" for path in sorted(paths)
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if len(line) > 120]
    assert not long, long


@pytest.mark.parametrize("folder", ["pytools", "tests", "benchmarks"])
def test_nothing_is_defined_twice(folder):
    """The second of two tests of one name hides the first."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for scope in (tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))):
            names = [node.name for node in scope.body
                     if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.decorator_list]
            assert len(names) == len(set(names)), f"{path}: {[name for name in set(names) if names.count(name) > 1]}"


def test_tests_take_what_they_share_from_builders():
    """No test imports from another test or from conftest, and no two have one name, by which pytest knows them."""
    paths = sorted((ROOT / "tests").rglob("*.py"))
    names = [path.stem for path in paths if path.stem.startswith("test_")]
    assert len(names) == len(set(names))
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = [node.module or ""] if isinstance(node, ast.ImportFrom) else \
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in found} & {*names, "conftest"}, f"{path}, line {node.lineno}"
            skips = isinstance(node, ast.Attribute) and node.attr in ("skip", "skipif", "importorskip")
            assert not skips or path.name == "conftest.py", f"{path}, line {node.lineno}: a marker says what is needed"


def test_what_is_required_is_not_skipped(shell):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kaldi/test_kaldi_scripts.py"]
    missing = "REQUIRE has kaldi, but KALDI is not tested: KALDI_ROOT has no"
    for require, code, said in (("", 0, "skipped"), ("k2 kaldi", 1, missing),
                                ("kadli", 4, "no need is called kadli")):
        done = shell(*command, env={"KALDI_ROOT": "/nowhere", "REQUIRE": require})
        assert done.returncode == code and said in done.stdout + done.stderr, done.stdout + done.stderr


def test_one_file_of_tests_runs_alone(shell):
    """By its path from where the caller stands, or by its name, one test of it too; nothing else is done."""
    env = {"ESSENCE_K2_PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    for folder, named in ((ROOT, "tests/unit/test_options.py"), (ROOT / "tests" / "unit", "./test_options.py"),
                          (ROOT / "docs", "test_options.py::test_a_second_default_is_refused")):
        done = shell(ROOT / "tests" / "run.sh", named, "-k", "second_default", cwd=folder, env=env)
        assert done.returncode == 0 and "\n1 passed" in done.stdout, done.stdout + done.stderr
        assert "workers" not in done.stdout and "shellcheck" not in done.stderr


def test_no_circular_imports_and_nothing_heavy_at_import():
    """Every module of io, hmm.graph and decode loads where only NumPy and PyYAML are."""
    light = ["essence_kd.io.tables", "essence_kd.io.posterior", "essence_kd.io.provenance", "essence_kd.hmm.graph",
             "essence_kd.am.settings", "essence_kd.decode.decoders.k2", "essence_kd.decode.lattice",
             "essence_kd.cli.main"]
    code = ("import importlib, sys\n"
            f"for m in {light!r}: importlib.import_module(m)\n"
            "heavy = {'torch', 'lhotse', 'k2', 'matplotlib', 'scipy'} & set(sys.modules)\n"
            "sys.exit(f'imported at once: {heavy}' if heavy else 0)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT / "pytools"), "KALDI_ROOT": "", "PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_refuses_unknown_options(verb, shell):
    done = shell("local/bin/essence", verb, "--help")
    assert done.returncode == 0 and "usage: essence " + verb in done.stdout
    done = shell("local/bin/essence", verb, "--no-such-option")
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_the_command_itself(shell):
    listing = shell("local/bin/essence", "--help")
    assert listing.returncode == 0
    for verb in VERBS:
        assert f"  {verb} " in listing.stdout
    assert shell("local/bin/essence").returncode == 2
    unknown = shell("local/bin/essence", "distil")
    assert unknown.returncode == 2 and "no verb 'distil'" in unknown.stderr


def test_a_users_mistake_is_one_line(shell, tmp_path):
    done = shell("local/bin/essence", "prune-post", f"scp:{tmp_path}/none.scp", "ark:/dev/null")
    assert done.returncode == 1
    assert "none.scp" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.setuptools
def test_a_source_archive_can_be_installed_from(tmp_path):
    shutil.copytree(ROOT / "pytools", tmp_path / "pytools", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "-d", "."], cwd=tmp_path, check=True,
                   capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"pyproject.toml", "conf/requirements/core.txt", "conf/requirements/recipe.txt",
            "conf/models/student_tdnn.yaml", "pytools/essence_kd/py.typed", "pytools/essence_kd/io/kernels.c",
            "pytools/essence_kd/score/templates/report.html"} <= names


@pytest.mark.parametrize("verb", ["join-post", "gmm-align"])
def test_a_python_without_the_packages_says_which_one(verb):
    code = (f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
            f"sys.argv = ['essence', {verb!r}, 'out', 'a.scp']\n"
            "from essence_kd.cli.main import command; command()")
    done = subprocess.run([sys.executable, "-S", "-E", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "has no package 'numpy'; local/setup_env.sh" in done.stderr
    assert done.stderr.count("\n") == 1
