"""The set-up of this machine as files of Linux have it: what makes timings of equal hardware differ.

Pure reading of files below `root`, so that a test can hand in a machine of its own. What a file does not have is
None, on other systems everything: nothing here is guessed, and nothing is changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from harness.records import Json

CPU = "sys/devices/system/cpu"
CGROUPS = "sys/fs/cgroup"

ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
"""That people preload in place of the C library's malloc."""

UNLIMITED = "unlimited"


def machine(root: Path = Path("/"), preloaded: str = "") -> dict[str, Json]:
    """Facts in plain JSON. `preloaded` is the variable LD_PRELOAD.

    affinity: the processors that this process may use. governors, frequency_driver: all that are in use. turbo, smt:
    whether on. cpu_quota: processors' worth of time that the control groups allow, or "unlimited". virtual: whether a
    hypervisor shows itself; hypervisor: its name. allocator: whose malloc this process has. huge_pages: the kernel's
    transparent ones, always, madvise or never.
    """
    hypervisor = _text(root / "sys/hypervisor/type")
    return {
        "affinity": _affinity(root),
        "governors": _policies(root, "scaling_governor"),
        "frequency_driver": _policies(root, "scaling_driver"),
        "turbo": _turbo(root),
        "smt": _switch(_text(root / CPU / "smt/active")),
        "cpu_quota": _cpu_quota(root),
        "virtual": True if hypervisor else _virtual(root),
        "hypervisor": hypervisor,
        "allocator": _allocator(root, preloaded),
        "huge_pages": _chosen(_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
    }


def _text(path: Path) -> str | None:
    """The content of a file, None where it is not there, cannot be read or is empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _switch(text: str | None) -> bool | None:
    return {"0": False, "1": True}.get(text or "")


def _affinity(root: Path) -> list[int] | None:
    """proc(5): Cpus_allowed_list is as ``0-3,8``."""
    found = re.search(r"^Cpus_allowed_list:\s*(\S+)", _text(root / "proc/self/status") or "", re.MULTILINE)
    if not found:
        return None
    ranges = [part.partition("-") for part in found[1].split(",")]
    return [cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)]


def _policies(root: Path, name: str) -> list[str] | None:
    """One file of every group of processors that change their frequency together; what they say, each once."""
    found = {_text(path) for path in (root / CPU / "cpufreq").glob(f"policy*/{name}")}
    return sorted(text for text in found if text) or None


def _turbo(root: Path) -> bool | None:
    """Intel's driver has a switch of its own, others one for all or one per policy; None when those disagree."""
    no_turbo = _switch(_text(root / CPU / "intel_pstate/no_turbo"))
    if no_turbo is not None:
        return not no_turbo
    everywhere = _switch(_text(root / CPU / "cpufreq/boost"))
    if everywhere is not None:
        return everywhere
    each = _policies(root, "boost") or []
    return _switch(each[0]) if len(each) == 1 else None


def _cpu_quota(root: Path) -> float | str | None:
    """The strictest of this process's control group (version 2) and those above it, as far as it can see them.

    cpu.max holds microseconds of processor time and of the period, or ``max`` for no limit; the kernel's
    Documentation/admin-guide/cgroup-v2.rst. None under version 1.
    """
    groups = _text(root / "proc/self/cgroup") or ""
    own = [line.removeprefix("0::").strip("/") for line in groups.splitlines() if line.startswith("0::")]
    if not own or _text(root / CGROUPS / "cgroup.controllers") is None:
        return None
    folder, limits = root / CGROUPS / own[0], []
    for place in (folder, *folder.parents):
        allowed, _, period = (_text(place / "cpu.max") or "max").partition(" ")
        if allowed != "max":
            limits.append(int(allowed) / int(period))
        if place == root / CGROUPS:
            break
    return min(limits) if limits else UNLIMITED


def _virtual(root: Path) -> bool | None:
    """x86 processors have a flag for it, kept free for hypervisors; others have no such thing."""
    flags = re.search(r"^flags\s*:(.*)$", _text(root / "proc/cpuinfo") or "", re.MULTILINE)
    return "hypervisor" in flags[1].split() if flags else None


def _allocator(root: Path, preloaded: str) -> str | None:
    """A known allocator that is preloaded and mapped, or the C library's where none is either; else None.

    One that is mapped without having been preloaded may or may not stand in for malloc.
    """
    maps = _text(root / "proc/self/maps")
    if maps is None:
        return None
    wanted = [name for name in ALLOCATORS if f"lib{name}" in preloaded]
    mapped = [name for name in ALLOCATORS if f"lib{name}" in maps]
    if wanted and wanted[0] in mapped:
        return wanted[0]
    return None if mapped else "the C library's"


def _chosen(text: str | None) -> str | None:
    """The one in brackets, as in ``always [madvise] never``."""
    found = re.search(r"\[(\w+)\]", text or "")
    return found[1] if found else None


NAMED = (
    "ATEN_CPU_CAPABILITY",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_VISIBLE_DEVICES",
    "GLIBC_TUNABLES",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "OMP_PLACES",
    "OMP_PROC_BIND",
    "ONEDNN_MAX_CPU_ISA",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_HIP_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
PREFIXES = ("MALLOC_", "TCMALLOC_", "MIMALLOC_")


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that change what is measured; those that hold a path are left out."""
    found = {name: value for name, value in environ.items() if name in NAMED or name.startswith(PREFIXES)}
    return {name: value for name, value in sorted(found.items()) if "/" not in value}
