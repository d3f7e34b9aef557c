"""Settings in YAML, sidecars, the plan, and other JSON that a run reads."""
from __future__ import annotations

import json
import math
import os
from pathlib import Path

import yaml as _yaml  # noqa: F401 - what settings import, too

from essence_kd.am.models import read_model_yaml
from essence_kd.am.models.registry import model_settings
from essence_kd.am.settings import ForwardSettings, TrainSettings, check_settings
from essence_kd.decode.options import DecodeOptions
from essence_kd.decode.sweeps import pool_sweeps, read_best
from essence_kd.distill.essence import EssenceSettings
from essence_kd.io.errors import UserError
from essence_kd.io.lookup import as_text, look_up, read_json_lines, read_values
from essence_kd.io.provenance import check_match, read_sidecar, write_sidecar
from essence_kd.io.settings import dump_settings, from_dict, load_settings, read_yaml, to_dict
from essence_kd.plan.grid import GridSettings, expand
from essence_kd.plan.plan import read_plan, write_plan
from essence_kd.score.experiment import _load_stages, read_json
from fuzz.driver import SEPARATOR, file, folder, target


@target
def yaml(data: bytes) -> None:
    """A YAML file as each kind of settings; what is written again is the same."""
    values, good, first = read_yaml(file(data, "input.yaml")), 0, None
    for kind in (TrainSettings, EssenceSettings, DecodeOptions, ForwardSettings):
        try:
            found = from_dict(kind, values, "input.yaml")
            if kind is TrainSettings:
                check_settings(found)
        except UserError as error:
            first = first or error
            continue
        good += 1
        copy = os.path.join(folder(), "copy.yaml")
        dump_settings(found, copy)
        assert to_dict(load_settings(kind, copy)) == to_dict(found)
    if first and not good:
        raise first


@target
def overrides(data: bytes) -> None:
    """What follows --set."""
    load_settings(TrainSettings, None, data.decode("utf-8", "replace").split("\n"))


@target
def grid(data: bytes) -> None:
    """The grid of an ablation."""
    for point, seeds in expand(load_settings(GridSettings, file(data, "grid.yaml")), EssenceSettings(), 3, "grid.yaml"):
        assert point.name and point.title and all(isinstance(seed, int) for seed in seeds)


@target
def model_yaml(data: bytes) -> None:
    """model.yaml of a model directory."""
    file(data, "model.yaml")
    found = read_model_yaml(folder())
    if "arch" in found:
        model_settings(found["arch"], found.get("model") or {}, "model.yaml")


@target
def sidecar(data: bytes) -> None:
    """A sidecar, written again, and compared with itself."""
    path = file(data, "post.json")
    found = read_sidecar(path)
    check_match(path, found, path, found, list(found))
    copy = os.path.join(folder(), "copy.json")
    try:
        write_sidecar(copy, found)
    except ValueError as error:
        assert "cannot be stored" in str(error)
        return
    again = read_sidecar(copy)
    assert {**found, "tool_version": 0} == {**again, "tool_version": 0}


@target
def plan(data: bytes) -> None:
    """plan.json; what is written again is the same."""
    found = read_plan(Path(file(data, "plan.json")))
    copy = Path(folder(), "copy.json")
    write_plan(found, copy)
    assert read_plan(copy) == found
    found.main_systems(), found.sets_of("test"), found.dev_set


@target
def lookup(data: bytes) -> None:
    """A value of JSON or YAML by its key."""
    text, _, keys = data.partition(SEPARATOR)
    errors = []
    for name in ("values.json", "values.yaml"):
        try:
            values = read_values(file(text, name))
            for key in keys.decode("utf-8", "replace").split("\n"):
                as_text(look_up(values, key, name))
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0]


@target
def stages(data: bytes) -> None:
    """stages.jsonl, or any other file of JSON lines."""
    path = Path(file(data, "stages.jsonl"))
    assert all(isinstance(row, dict) for row in read_json_lines(path))
    for row in _load_stages(path).values():
        assert row["seconds"] is not None


@target
def results(data: bytes) -> None:
    """JSON that the report reads."""
    assert isinstance(read_json(Path(file(data, "results.json"))), dict)


@target
def sweep(data: bytes) -> None:
    """sweep.json, two of them pooled."""
    paths = [file(part, f"sweep{i}.json") for i, part in enumerate(data.split(SEPARATOR)[:2])]
    best = read_best(paths[0])
    assert all(math.isfinite(value) for value in best.values())
    table = pool_sweeps(paths, os.path.join(folder(), "pooled.json"))
    assert json.dumps(table)
