"""python -m fuzz TARGET SECONDS PLACE: one target for so long; by atheris where it is installed, else by mutations.

PLACE/corpus/TARGET keeps what was new, PLACE/findings what broke a rule. ``python -m fuzz`` names the targets.
"""
from __future__ import annotations

import sys
import time
from pathlib import Path

from fuzz import driver


def by_atheris(atheris, name: str, seconds: int, place: Path) -> None:
    """Coverage-guided; libFuzzer ends the process."""
    with atheris.instrument_imports(include=["essence_kd"]):
        driver.load(name)
    corpus = place / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    found = driver.Findings(name, place / "findings")
    options = [f"-max_total_time={seconds}", f"-max_len={driver.LONGEST}", "-timeout=60", "-rss_limit_mb=4096",
               "-print_final_stats=1", f"-artifact_prefix={place / 'findings' / name}-", "-verbosity=1"]
    (place / "findings").mkdir(exist_ok=True)
    atheris.Setup([sys.argv[0], *options, str(corpus), str(driver.SEEDS / name)], found)
    with driver.Quiet():
        atheris.Fuzz()


def by_mutation(name: str, seconds: int, place: Path) -> None:
    """Mutations of the seeds, from another place on in each run."""
    driver.load(name)
    found, start = driver.Findings(name, place / "findings"), time.monotonic()
    with driver.Quiet():
        for data in driver.made_up(name, int(time.time())):
            found(data)
            if time.monotonic() > start + seconds:
                break
    print(f"Done {found.executions} runs without coverage, {found.taken} inputs taken", file=sys.stderr)


def main() -> None:
    """See above."""
    if len(sys.argv) < 2:
        driver.load()
        print(*driver.TARGETS)
        return
    name, seconds, place = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    try:
        import atheris
    except ImportError:
        by_mutation(name, seconds, place)
    else:
        by_atheris(atheris, name, seconds, place)


if __name__ == "__main__":
    main()
