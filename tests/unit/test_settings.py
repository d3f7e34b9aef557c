"""Settings: YAML into dataclasses, overrides, and what is refused."""
from dataclasses import dataclass, field
from typing import List, Optional

import pytest

from essence_kd.io.errors import UserError
from essence_kd.io.settings import dump_settings, from_dict, load_settings, to_dict


@dataclass
class Inner:
    rate: float = 0.5
    sizes: List[int] = field(default_factory=lambda: [1, 2])


@dataclass
class Outer:
    name: str = "a"
    count: int = 3
    flag: bool = False
    limit: Optional[int] = None
    free: dict = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


@dataclass
class Needs:
    path: str
    size: int = 1


def write(tmp_path, text):
    path = tmp_path / "s.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_file_and_overrides_in_that_order(tmp_path):
    assert load_settings(Outer) == Outer()
    path = write(tmp_path, "count: 7\nname: b\ninner: {rate: 2}\nfree: {any: [thing]}\n")
    assert load_settings(Outer, path) == Outer(name="b", count=7, inner=Inner(rate=2.0), free={"any": ["thing"]})
    got = load_settings(Outer, path, ["count=8", "inner.sizes=[5]", "limit=4", "free.more=yes", "name=x=y"])
    assert got.count == 8 and got.inner == Inner(2.0, [5]) and got.limit == 4 and got.name == "x=y"
    assert got.free == {"any": ["thing"], "more": True}


def test_an_empty_file_is_all_defaults(tmp_path):
    assert load_settings(Outer, write(tmp_path, "# nothing\n")) == Outer()


@pytest.mark.parametrize("text, value", [("1e-3", 0.001), ("2", 2.0), ("0.25", 0.25)])
def test_numbers_in_any_notation(tmp_path, text, value):
    assert load_settings(Inner, write(tmp_path, f"rate: {text}\n")).rate == value
    assert load_settings(Outer, None, [f"inner.rate={text}"]).inner.rate == value


@pytest.mark.parametrize("text, words", [
    ("cuont: 3", ["unknown key 'cuont'", "did you mean 'count'"]),
    ("inner: {zzz: 3}", ["inner: unknown key 'zzz'", "rate, sizes"]),
    ("count: many", ["count", "whole number", "'many'"]),
    ("count: 2.5", ["count", "whole number"]),
    ("count: true", ["count", "whole number", "True"]),
    ("flag: 1", ["flag", "true or false"]),
    ("name: 5", ["name", "a text"]),
    ("name:", ["name", "nothing"]),
    ("inner: 5", ["inner", "group of settings"]),
    ("inner: {rate: fast}", ["rate", "a number", "fast"]),
    ("inner: {rate: .nan}", ["rate", "a number"]),
    ("inner: {sizes: 3}", ["sizes", "a list"]),
    ("inner: {sizes: [1, x]}", ["sizes[1]", "whole number"]),
    ("limit: soon", ["limit", "whole number"]),
    ("[1, 2]", ["mapping"]),
    ("a: [", ["not valid YAML"]),
])
def test_what_is_refused_names_file_and_key(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        load_settings(Outer, path)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("override, word", [("count", "key=value"), ("=3", "key=value"),
                                            ("nope=3", "unknown key 'nope'"),
                                            ("count.x=3", "count"), ("name=[", "not valid YAML")])
def test_overrides_that_are_refused(tmp_path, override, word):
    with pytest.raises(UserError, match="."):
        try:
            load_settings(Outer, write(tmp_path, "count: 3\n"), [override])
        except UserError as error:
            assert word in str(error)
            raise


def test_missing_file_bytes_and_missing_key(tmp_path):
    with pytest.raises(UserError, match="none.yaml: no such file"):
        load_settings(Outer, tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(UserError, match="not UTF-8"):
        load_settings(Outer, tmp_path / "bytes.yaml")
    with pytest.raises(UserError, match="missing key 'path'"):
        from_dict(Needs, {"size": 2}, "x")


def test_what_is_written_reads_back(tmp_path):
    settings = Outer(name="ünï", count=9, limit=2, inner=Inner(1e-5, [3, 4]), free={"k": {"x": [1, 2.5, "t"]}})
    dump_settings(settings, tmp_path / "out.yaml")
    assert load_settings(Outer, tmp_path / "out.yaml") == settings
    dump_settings(to_dict(settings), tmp_path / "out2.yaml")
    assert (tmp_path / "out2.yaml").read_text() == (tmp_path / "out.yaml").read_text()
