"""Numerics profiles: which CPU kernels the libraries use, and which machines give equal bytes.

A library selects its kernels by the CPU, and kernels of different instruction sets round
differently. A profile limits the selection:

- ``native``: no limit. Results repeat on the same CPU model.
- ``avx2``: AVX2 kernels in ATen, oneDNN, numpy and OpenBLAS, and MKL's COMPATIBLE branch. Results
  repeat on CPUs of Intel and AMD that have AVX2.
- ``plain``: as ``avx2``, but ATen without vector kernels, and oneDNN off.

The README has the measured digests and times. The libraries read these environment variables when
they are imported, so `select` runs before any import of numpy or torch.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path

_CPU_LIMITS = {
    "MKL_CBWR": "COMPATIBLE",
    "MKL_DYNAMIC": "FALSE",
    "OMP_DYNAMIC": "FALSE",
    "OPENBLAS_CORETYPE": "Haswell",
    "OPENBLAS_NUM_THREADS": "1",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}
PROFILES: dict[str, dict[str, str]] = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", **_CPU_LIMITS},
    "plain": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", **_CPU_LIMITS},
}
_SELECTORS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR")


def select(profile: str) -> None:
    """Set the environment variables of a profile, for this process and its children.

    On a CPU without AVX2 the profile stays ``native``; `active` and the run's record show this.

    Args:
        profile: a key of `PROFILES`.

    Raises:
        RuntimeError: numpy or torch is imported already, and another profile is active.
    """
    if profile == active() or (profile == "avx2" and not has_avx2()):
        return
    loaded = [name for name in ("numpy", "torch") if name in sys.modules]
    if loaded:
        raise RuntimeError(f"numerics profile {profile}: select it before importing {loaded[0]}")
    for name in PROFILES["plain"]:
        os.environ.pop(name, None)
    os.environ.update(PROFILES[profile])


def active() -> str:
    """The profile that the environment variables of this process select."""
    values = {name: os.environ.get(name) for name in _SELECTORS}
    for profile, variables in PROFILES.items():
        if all(variables.get(name) == value for name, value in values.items()):
            return profile
    return "custom"


def numerics_class() -> str:
    """The class of machines on which this process's results have equal bytes.

    It is the profile and, without a profile, also the CPU model. Examples: ``avx2``,
    ``native-AuthenticAMD-26-2-AVX512``.
    """
    profile = active()
    if profile in ("avx2", "plain"):
        return profile
    import torch

    cpu = cpu_model()
    parts = (profile, cpu["vendor"], cpu["family"], cpu["model"])
    return "-".join([*filter(None, parts), torch.backends.cpu.get_cpu_capability()])


def software() -> dict[str, str]:
    """The numerics class, and the versions of Python and the libraries that compute the results.

    Python's patch version is left out: it changes no result.
    """
    import transformers

    return {
        "class": numerics_class(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "transformers": transformers.__version__,
        **library_versions(),
    }


def library_versions() -> dict[str, str]:
    """Versions of the libraries whose kernels compute the results: torch, oneDNN, MKL, numpy."""
    import numpy
    import torch

    text = torch.__config__.show()
    patterns = {"mkl": r"Math Kernel Library Version (\S+?)-", "onednn": r"MKL-DNN v(\S+)"}
    found = {name: re.search(pattern, text) for name, pattern in patterns.items()}
    return {
        "torch": torch.__version__,
        **{name: match[1] if match else "none" for name, match in found.items()},
        "numpy": numpy.__version__,
    }


def cpu_model() -> dict[str, str]:
    """Vendor, family, model and name of the CPU, as Linux reports them; else empty strings."""
    known = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", _cpuinfo(), re.MULTILINE))
    return {
        "vendor": known.get("vendor_id", platform.machine()),
        "family": known.get("cpu family", ""),
        "model": known.get("model", ""),
        "name": known.get("model name", platform.processor()),
    }


def has_avx2() -> bool:
    """Whether the CPU is known to have AVX2."""
    return re.search(r"\bavx2\b", _cpuinfo()) is not None


def _cpuinfo() -> str:
    """The description of the first CPU in /proc/cpuinfo; empty on other systems."""
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").split("\n\n")[0] if path.is_file() else ""
