"""Packaging of essence_kd; local/setup_env.sh reads the same lists to set up a checkout."""
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
CONF = {"essence_kd.conf": "conf", "essence_kd.conf.models": "conf/models"}  # io/resources.py finds them


def requirements(name):
    """The requirement lines of conf/requirements/NAME.txt."""
    lines = (HERE / "conf" / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in (raw.split("#")[0].strip() for raw in lines) if line]


setup(
    name="essence-kd",
    version="0.1.0",
    description="Essence knowledge distillation for hybrid (HMM-senone) speech recognition",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    package_dir={"": "pytools", **CONF},
    packages=[*find_packages("pytools"), *CONF],
    package_data={"essence_kd.io": ["kernels.c"], "essence_kd.score": ["templates/*.html"],
                  **{name: ["*.yaml"] for name in CONF}},
    python_requires=">=3.9",
    install_requires=requirements("core"),
    extras_require={name: requirements(name) for name in ("recipe", "export", "test")},
    entry_points={"console_scripts": ["essence=essence_kd.cli.main:command"]},
)
