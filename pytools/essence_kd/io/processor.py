"""What the processor does well; it needs no other package."""
from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def precision_of_cpu() -> str:
    """float32 or bfloat16, whichever a training is faster in: a rule, not a timing.

    That is bfloat16 for CPUs with AMX tiles, and AMD's with AVX-512's bfloat16 instructions: there a step of the
    networks of conf/models took 0.57 to 0.86 of its time in float32 (essence bench-train --set precision=...). These
    instructions alone do not make it so: on another CPU bfloat16 was slower, 0.7 times as fast as float32.
    """
    try:
        words = set(CPUINFO.read_text().split())
    except OSError:
        words = set()
    fast = "amx_bf16" in words or {"AuthenticAMD", "avx512_bf16"} <= words
    return "bfloat16" if fast else "float32"
