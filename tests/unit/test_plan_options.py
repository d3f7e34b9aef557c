"""Options of run.sh, recipes and models that a plan refuses, without a process; what recipe.conf may say."""
from __future__ import annotations

import dataclasses

import pytest
from builders import ROOT, refused

from essence_kd.cli.main import main
from essence_kd.plan.options import (OptionError, Options, check_models, check_options, check_recipe, corpora,
                                     find_recipe, model_names, run_name)
from essence_kd.plan.recipe import read_recipe

RECIPE = """sizes="default tiny"
description="two words"
train_set=learn dev_set=tune eval_sets="easy hard"
lm_order=2
teachers="blstm tdnn_lstm"
student=student_tdnn
post_keep=10 disk_mb=100
"""


def given(**changes):
    """The options of ``./run.sh`` without any, but for those named."""
    usual = {"corpus": "mini", "size": "default", "engine": "native", "stage": "0", "stop_stage": "10",
             "nj": "2", "seed": "1",
             "decoder": "auto", "combine": "mean", "fuse": "false", "ablation": "false", "grid": "conf/ablation.yaml"}
    return Options(**{**usual, **changes})


@pytest.fixture
def recipe(tmp_path):
    """Reads RECIPE with changes: lines that are added, or taken out where they are None."""
    def read(added="", without=None, size="default", fuse="false"):
        path = tmp_path / "recipe.conf"
        lines = [line for line in RECIPE.splitlines(True) if without is None or not line.startswith(without)]
        path.write_text("".join(lines) + added)
        return read_recipe(path, size=size, fuse=fuse)
    return read


@pytest.mark.parametrize("changes, message", [
    ({"stage": "11"}, "there is no stage 11: stages are 0 to 10"),
    ({"stop_stage": "99"}, "there is no stage 99: stages are 0 to 10"),
    ({"stage": "x"}, "--stage takes a whole number, not 'x'"),
    ({"stage": ""}, "--stage takes a whole number, not ''"),
    ({"stop_stage": "-1"}, "--stop-stage takes a whole number, not '-1'"),
    ({"stop_stage": "\u0663"}, "--stop-stage takes a whole number, not '\u0663'"),  # a digit, not for the shell
    ({"stage": "5", "stop_stage": "3"}, "--stage 5 comes after --stop-stage 3"),
    ({"seed": "1.5"}, "--seed takes a whole number, not '1.5'"),
    ({"nj": "0"}, "--nj takes a whole number of at least 1, not '0'"),
    ({"nj": "9" * 5000}, "--nj takes a whole number of at most nine digits"),
    ({"nj": "two"}, "--nj takes a whole number of at least 1, not 'two'"),
    ({"num_leaves": "0"}, "--num-leaves takes a whole number of at least 1, not '0'"),
    ({"lm_prune": "1.5"}, "--lm-prune takes a number of at least 0 and less than 1, not '1.5'"),
    ({"lm_order": "0"}, "--lm-order takes a whole number of at least 1, not '0'"),
    ({"rescore_lm_order": "four"}, "--rescore-lm-order takes a whole number, not 'four'"),
    ({"top_k": "5 0"}, "--top-k takes a whole number of at least 1, not '0'"),
    ({"temperature": "hot"}, "--temperature takes a number, not 'hot'"),
    ({"soft_weight": "much"}, "--soft-weight takes a number, not 'much'"),
    ({"corpus": "nope"}, "unknown corpus 'nope'; there are: fsdd librispeech mini swbd"),
    ({"corpus": "plugin"}, "unknown corpus 'plugin'"),  # a folder of recipes/ without recipe.conf
    ({"corpus": ""}, "unknown corpus ''"),
    ({"engine": "nope"}, "unknown engine 'nope'; there are: native kaldi"),
    ({"decoder": "nope"}, "unknown decoder 'nope'; there are: auto k2 kaldi kaldi-lattice"),
    ({"engine": "kaldi", "decoder": "nope"}, "unknown decoder 'nope'"),
    ({"combine": "sum"}, "unknown combine 'sum'; there are: mean logmean"),
    ({"decoder": "kaldi-lattice"}, "--decoder kaldi-lattice needs --engine kaldi"),
    ({"gmm": "tri9"}, "unknown gmm 'tri9'; there are: mono tri1 tri2 tri3"),
    ({"gmm": "tri2", "engine": "kaldi"}, "--gmm tri2 needs --engine native: the engine kaldi trains tri3"),
    ({"fuse": "yes"}, "--fuse takes true or false, not 'yes'"),
    ({"ablation": "1"}, "--ablation takes true or false, not '1'"),
    ({"all_labels": "yes"}, "--all-labels takes true or false, not 'yes'"),
    ({"all_labels": "true", "fuse": "true"}, "--all-labels needs the dense archive, which --fuse true does not leave"),
    ({"ablation": "true", "fuse": "true"}, "--ablation prunes the wide archive, which --fuse true does not leave"),
    ({"grid": "no.yaml"}, "no grid 'no.yaml'"),
    ({"student": "student_tdnn student_tdnn"}, "--student names a model twice: 'student_tdnn student_tdnn'"),
    ({"corpus": "fsdd", "recipe_options": {"fsdd_dir": "/nowhere"}}, "no folder '/nowhere' for --fsdd-dir"),
])
def test_options_that_make_no_sense(changes, message):
    refused(lambda: check_options(given(**changes), ROOT), message)
    with pytest.raises(OptionError):  # status 2
        check_options(given(**changes), ROOT)


@pytest.mark.parametrize("changes", [
    {}, {"stage": "10"}, {"stop_stage": "0"}, {"rescore_lm_order": "0"},
    {"top_k": "5 20 5", "temperature": "2", "soft_weight": "1e-1"},
    {"engine": "kaldi", "decoder": "kaldi-lattice", "corpus": "swbd"}, {"combine": "logmean", "decoder": "k2"},
    {"fuse": "true"}, {"corpus": "fsdd", "recipe_options": {"fsdd_dir": str(ROOT), "heldout_speakers": "a b"}},
    {"corpus": "fsdd", "recipe_options": {"fsdd_dir": ""}},
])
def test_options_that_do(changes):
    check_options(given(**changes), ROOT)


@pytest.mark.parametrize("changes, added, message", [
    ({"size": "full"}, "", "corpus mini has no size 'full'; it has: default tiny"),
    ({"engine": "kaldi"}, "engines=native\n", "corpus mini needs --engine native"),
    ({}, "engines=kaldi\n", "corpus mini needs --engine kaldi"),
    ({"recipe_options": {"fsdd_dir": "/tmp"}}, "", "corpus mini has no option --fsdd-dir"),
    ({"recipe_options": {"its_other": "1"}}, 'options="its_own"\n', "corpus mini has no option --its-other"),
])
def test_what_a_recipe_does_not_allow(recipe, changes, added, message):
    options = given(**changes)
    refused(lambda: check_recipe(options, recipe(added, size=options.size)), message)
    with pytest.raises(OptionError):
        check_recipe(options, recipe(added, size=options.size))


@pytest.mark.parametrize("name, message", [
    ("seed", "options: 'seed' is an option of run.sh"), ("work_dir", "options: 'work_dir' is an option of run.sh"),
    ("Its-own", "options: 'Its-own' is no name"),
])
def test_options_that_no_recipe_can_declare(recipe, name, message):
    refused(lambda: check_recipe(given(), recipe(f"options={name}\n")), message)


def test_what_it_allows(recipe):
    check_recipe(given(size="tiny", engine="kaldi"), recipe())
    check_recipe(given(recipe_options={"its_own": "1", "other": ""}), recipe('options="other its_own"\n'))


@pytest.mark.parametrize("models, engine, message", [
    (["nope"], "native", "no conf/models/nope.yaml for model 'nope'"),
    (["blstm", "nope"], "kaldi", "no conf/models/nope.yaml for model 'nope'"),
    (["../models/student_tdnn"], "native", "'../models/student_tdnn' is no model"),
    (["nnet3/../nnet3/tdnn"], "kaldi", "'nnet3/../nnet3/tdnn' is no model"),
    (["nnet3/tdnn"], "native", "teacher nnet3/tdnn needs --engine kaldi"),
    (["nnet3/nope"], "kaldi", "no conf/nnet3/nope.xconfig for model 'nnet3/nope'"),
])
def test_models_without_a_file_or_an_engine(models, engine, message):
    refused(lambda: check_models(models, engine, ROOT), message)
    with pytest.raises(OptionError):
        check_models(models, engine, ROOT)


def test_every_model_of_conf_may_be_named():
    models = [path.stem for path in (ROOT / "conf" / "models").glob("*.yaml")]
    assert len(models) > 4
    check_models(models, "native", ROOT)
    check_models([*models, *model_names("nnet3", "")], "kaldi", ROOT)


@pytest.mark.parametrize("text, names", [
    ("", ["a", "b"]), ("torch", ["a", "b"]), ("c", ["c"]), (" ", ["a", "b"]), (" c  d ", ["c", "d"]),
    ("nnet3", ["nnet3/tdnn", "nnet3/tdnn_lstm", "nnet3/blstm"]), ("nnet3/tdnn c", ["nnet3/tdnn", "c"]),
])
def test_names_of_models(text, names):
    assert model_names(text, "a b") == names


@pytest.mark.parametrize("changes, name", [
    ({}, "mini"), ({"size": "tiny"}, "mini_tiny"), ({"engine": "kaldi"}, "mini_kaldi"),
    ({"corpus": "fsdd", "size": "tiny", "engine": "kaldi"}, "fsdd_tiny_kaldi"),
])
def test_the_name_of_a_run(changes, name):
    assert run_name(given(**changes)) == name


def test_a_recipe_says_what_its_corpus_has(recipe):
    found = recipe('labels="easy=E hard=H"\nuntranscribed_sets="more"\nuntranscribed=true\n'
                   'options="its_own other"\nclips=4\nrescore_lm_order=4\ngmm=tri1\nnum_leaves=900\nlm_prune=1e-6\n'
                   'if [ $size = tiny ]; then disk_mb=1; fi; if [ $fuse = true ]; then post_keep=7; fi\n',
                   size="tiny", fuse="true")
    assert dataclasses.asdict(found) == {
        "path": found.path, "description": "two words", "sizes": ["default", "tiny"], "engines": ["native", "kaldi"],
        "train_set": "learn", "dev_set": "tune", "eval_sets": ["easy", "hard"], "untranscribed_sets": ["more"],
        "labels": {"easy": "E", "hard": "H"}, "teachers": "blstm tdnn_lstm", "student": "student_tdnn",
        "lm_order": "2", "rescore_lm_order": "4", "clips": 4, "post_keep": 7, "disk_mb": 1, "sample_rate": 8000,
        "gmm": "tri1", "num_leaves": 900, "lm_prune": "1e-6", "untranscribed": "true", "teacher_hears": {},
        "options": ["its_own", "other"]}
    least = recipe()
    assert (least.engines, least.untranscribed_sets, least.labels) == (["native", "kaldi"], [], {})
    assert (least.rescore_lm_order, least.clips, least.options, least.gmm) == ("", 0, [], "tri2")


@pytest.mark.parametrize("added, without, words", [
    ("", "lm_order", ["says nothing of lm_order"]),
    ("", "post_keep", ["says nothing of post_keep"]),
    ("", "train_set", ["says nothing of train_set"]),
    ("post_keep=many\n", None, ["post_keep is 'many', not a whole number"]),
    ("disk_mb=-1\n", None, ["disk_mb is '-1', not a whole number"]),
    ("lm_prune=much\n", None, ["lm_prune is 'much', not a number of at least 0 and less than 1"]),
    ("clips=few\n", None, ["clips is 'few', not a whole number"]),
    ("labels='easy hard'\n", None, ["labels are pairs such as 'eval_swbd=SWBD', not 'easy hard'"]),
    ("clips=\u00b2\n", None, ["clips is '\u00b2', not a whole number"]),
    ("gmm=tri4\n", None, ["gmm is 'tri4', none of mono, tri1, tri2, tri3"]),
    ("lm_order=two\n", None, ["lm_order is 'two', not the order of an n-gram"]),
    ("rescore_lm_order=-1\n", None, ["rescore_lm_order is '-1', not the order"]),
    ("labels='easy='\n", None, ["labels are pairs such as"]),
    ("labels='esay=E'\n", None, ["labels: there is no set 'esay' (there are: learn, tune, easy, hard)"]),
    ("labels='easy=E hard=E'\n", None, ["two columns of the tables would be called 'E'"]),
    ("labels='easy=total'\n", None, ["two columns of the tables would be called 'total'"]),
    ("eval_sets='easy tune'\n", None, ["set 'tune' comes twice"]),
    ("eval_sets='a/b'\n", None, ["a set cannot be called 'a/b'"]),
    ("eval_sets='-x'\n", None, ["a set cannot be called '-x'"]),
    ("eval_sets='e*'\n", None, ["a set cannot be called 'e*'"]),
    ("eval_sets='total'\n", None, ["a set cannot be called 'total'"]),
    ("eval_sets='lang'\n", None, ["a set cannot be called 'lang'"]),
    ("eval_sets='tune_hires'\n", None, ["a set cannot be called 'tune_hires'", "from set 'tune'"]),
    ("untranscribed=some\n", None, ["untranscribed is 'some', none of false, true, only"]),
    ("untranscribed_sets='learn_sp'\n", None, ["a set cannot be called 'learn_sp'"]),
    ("untranscribed_sets='a a_cut'\n", None, ["a set cannot be called 'a_cut'", "from set 'a'"]),
    ("untranscribed_sets='a'\nteacher_hears='a'\n", None, ["teacher_hears are pairs such as 'found=found_clean'"]),
    ("untranscribed_sets='a'\nteacher_hears='b=c'\n", None, ["teacher_hears: 'b' is none of untranscribed_sets"]),
    ("untranscribed_sets='a'\nteacher_hears='a=tune'\n", None, ["set 'tune' comes twice", "teacher_hears"]),
    ("dev_set='a b'\n", None, ["dev_set is 'a b': name one"]),
    ("eval_sets=' '\n", None, ["eval_sets is ' ': name at least one"]),
    ("teachers=\n", None, ["teachers is '': name at least one"]),
    ("if true; then\n", None, ["bash cannot read it", "syntax error"]),
    ("no_such_command || exit 3\n", None, ["bash cannot read it", "no_such_command"]),
])
def test_a_recipe_that_cannot_be_read(recipe, tmp_path, added, without, words):
    refused(lambda: recipe(added, without), tmp_path / "recipe.conf", *words)


def test_of_a_size_that_it_has_not_a_recipe_need_say_nothing(recipe):
    """The message is that there is no such size, not that a number of that size is missing."""
    added = "case $size in default) post_keep=10 ;; esac\n"
    found = recipe(added, "post_keep", size="nope")
    refused(lambda: check_recipe(given(size="nope"), found), "has no size 'nope'")


def test_the_environment_is_not_the_recipe(recipe, monkeypatch):
    monkeypatch.setenv("rescore_lm_order", "9")
    monkeypatch.setenv("lm_order", "9")
    assert (recipe().rescore_lm_order, recipe().lm_order) == ("", "2")
    refused(lambda: recipe("", "lm_order"), "says nothing of lm_order")


def test_the_recipes_of_this_checkout():
    assert corpora(ROOT) == ["fsdd", "librispeech", "mini", "swbd"]
    for corpus in corpora(ROOT):
        path = ROOT / "recipes" / corpus / "recipe.conf"
        for size in read_recipe(path, size="default").sizes:
            found = read_recipe(path, size=size)
            check_models(model_names("", found.teachers) + model_names("", found.student), "native", ROOT)
            assert found.disk_mb > 0 and found.post_keep > 0 and set(found.labels) <= set(found.eval_sets)


def test_the_verb_ends_with_status_2_and_one_line(tmp_path, capsys):
    words = [word for name, value in dataclasses.asdict(given(nj="0")).items() if name != "recipe_options" and value
             for word in ("--" + name.replace("_", "-"), value)]
    for more in ([], ["--check-only"], ["--dry-run"]):
        assert main(["plan", *words, "--root", str(ROOT), "--work-dir", str(tmp_path), *more]) == 2
        said = capsys.readouterr()
        refusal = "--nj takes a whole number of at least 1, not '0'; see ./run.sh --help"
        assert said.out == "" and said.err.splitlines()[-1].endswith(refusal)
    assert not list(tmp_path.iterdir())
    for folder, message in (("Smith, John", "has a comma in its name"), ("a\nb", "has a line break in its name"),
                            ("a\udcffb", "has a byte in its name that is not UTF-8"), ("JOB7", "has JOB in its name")):
        assert main(["plan", "--check-only", *words, "--root", str(ROOT), "--work-dir", str(tmp_path / folder)]) == 2
        assert message in capsys.readouterr().err


def test_a_recipe_knows_its_options_and_its_first_size_is_the_usual_one(tmp_path):
    (tmp_path / "recipes" / "own").mkdir(parents=True)
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    path = tmp_path / "recipes" / "own" / "recipe.conf"
    path.write_text(RECIPE + 'options="narrow"\nsizes="small big"\n'
                    'sample_rate=16000\nif [ "$narrow" = "it\'s" ]; then sample_rate=8000; fi\n')
    for size, value, found in (("default", "it's", ("small", 8000)), ("big", "", ("big", 16000))):
        options, recipe = find_recipe(given(corpus="own", size=size, recipe_options={"narrow": value}), tmp_path)
        assert (options.size, recipe.sample_rate) == found
    assert find_recipe(given(), ROOT)[0].size == "default"  # which mini has
    for options, name in (({}, "librispeech_mini"), ({"size": "tiny", "engine": "kaldi"}, "librispeech_tiny_kaldi")):
        assert run_name(find_recipe(given(corpus="librispeech", **options), ROOT)[0]) == name
