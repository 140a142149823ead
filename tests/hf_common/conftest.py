"""Puts the transformers library's own test mixins, of the version installed, on the path as `hf_common_tests`."""

import os
import subprocess
import sys
from pathlib import Path

import transformers
from filelock import FileLock


REPOSITORY = Path(__file__).parents[2]
SUITE = REPOSITORY / "build" / f"hf_suite-{transformers.__version__}"


def build_suite() -> None:
    SUITE.parent.mkdir(exist_ok=True)
    with FileLock(f"{SUITE}.lock"):
        if not (SUITE / "hf_common_tests").is_dir():
            script = REPOSITORY / "tests" / "make_transformers_test_suite.sh"
            command = ["bash", str(script), transformers.__version__, str(SUITE), "hf_common_tests"]
            subprocess.run(command, check=True, env=_environment())


def _environment() -> dict[str, str]:
    # The script calls `python -m pip`: this interpreter's, also where no environment is activated.
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


build_suite()
sys.path.insert(0, str(SUITE))
