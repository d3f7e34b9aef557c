"""Values of JSON and YAML by key: what they are, and that a key with a mistake in it is refused and not empty."""
import json

import pytest
from builders import refused

from essence_kd.io.lookup import as_text, look_up, read_values

VALUES = {"seed": 1, "none": [],
          "sets": [{"name": "a", "role": "test", "label": None}, {"name": "b", "role": "dev", "label": "B"}]}


@pytest.mark.parametrize("key, found", [
    ("", VALUES), ("seed", 1), ("sets.1.name", "b"), ("sets.name", ["a", "b"]), ("sets[role=test].name", ["a"]),
    ("sets[role=test|dev].name.1", "b"), ("sets[label=].name", ["a"]), ("sets[role=train].name", []),
    ("none[role=test].name", []),
])
def test_values_by_key(key, found):
    assert look_up(VALUES, key, "f") == found


@pytest.mark.parametrize("key, words", [
    ("nope", ["f: there is no nope"]), ("sets.2", ["f: there is no sets.2"]),
    ("seed[a=b]", ["what seed names is no list"]),
    ("sets[role=test", ["is no key"]), ("seed.", ["is no key"]), ("sets.\u00b2", ["there is no \u00b2"]),
    # an empty answer would go on as if there were none
    ("sets[rol=test].name", ["f: nothing in 'sets' has a field 'rol'"]),
])
def test_keys_with_a_mistake_are_refused(key, words):
    refused(lambda: look_up(VALUES, key, "f"), *words)


def test_values_as_the_shell_has_them():
    assert [as_text(value) for value in (None, True, 0.5, "a b", ["a", None, 2], [{"a": 1}])] == [
        "", "true", "0.5", "a b", "a  2", '[{"a": 1}]']


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.json"
    refused(lambda: read_values(str(path)), path, "no such file")
    for text in ("{", "[" * 100_000):
        path.write_text(text)
        refused(lambda: read_values(str(path)), path, "not JSON")
    path.write_text(json.dumps(VALUES))
    assert read_values(str(path)) == VALUES
