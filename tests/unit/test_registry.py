"""Registries: own entries are found by their file, others by plugins; what is missing is told with what there is."""
from __future__ import annotations

import importlib.metadata
import sys

import pytest
from builders import refused

from essence_kd.io.errors import UserError
from essence_kd.io.registry import Registry


@pytest.fixture
def colours(tmp_path, monkeypatch):
    """A registry with a package of two entries, one of which is in plain sight."""
    package = tmp_path / "colour_package"
    package.mkdir()
    (package / "__init__.py").write_text("from essence_kd.io.registry import Registry\n"
                                         "COLOURS = Registry('colour', 'colour_package')\n")
    for name in ("dark-red", "blue"):
        (package / f"{name.replace('-', '_')}.py").write_text(
            f"from colour_package import COLOURS\n@COLOURS.register({name!r})\nclass Colour:\n    pass\n")
    (package / "helper.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield __import__("colour_package").COLOURS
    for name in [name for name in sys.modules if name.split(".")[0] in ("colour_package", "my_colours", "bad_colours")]:
        del sys.modules[name]


def test_an_entry_is_found_by_its_file_alone(colours):
    assert colours.get("dark-red").__module__ == "colour_package.dark_red"
    assert "colour_package.blue" not in sys.modules
    assert colours.names() == ("blue", "dark-red") and "blue" in colours
    assert "helper" not in colours and "no such/name" not in colours and "" not in colours


def test_what_is_missing_is_told_with_what_there_is(colours, monkeypatch):
    refused(lambda: colours.get("grey", "a.yaml"), "a.yaml: unknown colour 'grey' (known: blue, dark-red); if it is "
            "one of yours, ESSENCE_PLUGINS must name its module")
    monkeypatch.setenv("ESSENCE_PLUGINS", "sys")
    with pytest.raises(UserError, match=r"\(known: blue, dark-red\)$"):
        colours.get("grey")


def test_plugins_of_the_environment(colours, tmp_path, monkeypatch):
    (tmp_path / "my_colours.py").write_text("from colour_package import COLOURS\n"
                                            "@COLOURS.register('green')\ndef green(): pass\n")
    assert "green" not in colours
    monkeypatch.setenv("ESSENCE_PLUGINS", " my_colours ,")
    assert colours.names(plugins=False) == ("blue", "dark-red")
    assert "green" in colours and colours.get("green").__module__ == "my_colours"
    assert colours.names() == ("blue", "dark-red", "green")
    (tmp_path / "bad_colours.py").write_text("1 / 0\n")
    monkeypatch.setenv("ESSENCE_PLUGINS", "my_colours,bad_colours")
    refused(lambda: colours.get("grey"), "ESSENCE_PLUGINS: bad_colours", "ZeroDivisionError")
    monkeypatch.setenv("ESSENCE_PLUGINS", "no_such_colours")
    refused(lambda: colours.get("grey"), "ESSENCE_PLUGINS: no_such_colours", "No module named")


def test_plugins_of_installed_packages(colours, tmp_path, monkeypatch):
    (tmp_path / "my_colours.py").write_text("from colour_package import COLOURS\n"
                                            "@COLOURS.register('green')\ndef green(): pass\n")
    installed = tmp_path / "mine-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[essence_kd.plugins]\nmine = my_colours\n")
    assert any(d.metadata["Name"] == "mine" for d in importlib.metadata.distributions())
    assert colours.get("green").__module__ == "my_colours"


def test_a_name_belongs_to_one(colours):
    def blue():
        pass

    assert "blue" in colours
    refused(lambda: colours.register("blue")(blue), "colour 'blue' is registered twice: by colour_package.blue.Colour")
    again = Registry("colour", "colour_package")
    assert again.register("blue")(blue) is blue and again.get("blue") is blue
