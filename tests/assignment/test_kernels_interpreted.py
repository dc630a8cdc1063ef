"""The kernels in Triton's interpreter, on any CPU.

Whether kernels are interpreted is settled when Triton is imported, so these tests (`interpreted/check_*.py`) run in
processes of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

CHECKS = sorted((Path(__file__).parent / "interpreted").glob("check_*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("file", CHECKS, ids=lambda file: file.stem)
def test_in_the_interpreter(file: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "python_functions=check_*"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--jaxtyping-packages=mira,beartype.beartype", str(file)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore::RuntimeWarning"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_nothing_loads_triton_unasked() -> None:
    """Who has no GPU need not wait for a compiler, nor have one."""
    code = (
        "import sys, torch, mira, mira.assignment.cross_entropy as loss\n"
        "a, b = torch.zeros(2, 4, 3), torch.zeros(2, 3)\n"
        "mira.assign(a, beta=0.5)\n"
        "loss.swapped_cross_entropy(a, a, b, beta=0.5, temperature=1.0, student_temperature=1.0)\n"
        "sys.exit('triton' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
