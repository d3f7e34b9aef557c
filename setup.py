"""The folders of the package essence_kd; what else it is, pyproject.toml says."""
from setuptools import find_packages, setup

CONF = {"essence_kd.conf": "conf", "essence_kd.conf.models": "conf/models"}  # io/resources.py finds them

setup(package_dir={"": "pytools", **CONF}, packages=[*find_packages("pytools"), *CONF])
