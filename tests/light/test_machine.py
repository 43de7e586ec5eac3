"""How a machine is set up, read from machines made of files."""

from __future__ import annotations

import json
import os

import pytest

from harness.machine.fingerprint import environment
from harness.machine.linux import UNLIMITED, machine, variables

CPU = "sys/devices/system/cpu"


@pytest.fixture
def files(tmp_path):
    """Writes files below a root of their own: ``files({"proc/cpuinfo": "..."})``; gives the root."""

    def write(texts):
        for name, text in texts.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tmp_path

    return write


def test_what_no_file_tells_is_none(tmp_path):
    found = machine(tmp_path)
    assert set(found.values()) == {None}


def test_an_ordinary_server(files):
    root = files(
        {
            "proc/self/status": "Name:\tpython\nCpus_allowed:\tf0f\nCpus_allowed_list:\t0-3,8,10-11",
            "proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu sse2 avx2 hypervisorless",
            "proc/self/maps": "7f00-7f01 r-xp 0 00:00 1 /usr/lib/libc.so.6",
            f"{CPU}/cpufreq/policy0/scaling_governor": "performance",
            f"{CPU}/cpufreq/policy1/scaling_governor": "powersave",
            f"{CPU}/cpufreq/policy2/scaling_governor": "performance",
            f"{CPU}/cpufreq/policy0/scaling_driver": "intel_pstate",
            f"{CPU}/intel_pstate/no_turbo": "1",
            f"{CPU}/smt/active": "1",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
        }
    )
    assert machine(root) == {
        "affinity": [0, 1, 2, 3, 8, 10, 11],
        "governors": ["performance", "powersave"],
        "frequency_driver": ["intel_pstate"],
        "turbo": False,
        "smt": True,
        "cpu_quota": None,
        "virtual": False,
        "hypervisor": None,
        "allocator": "the C library's",
        "huge_pages": "madvise",
    }


@pytest.mark.parametrize(
    ("texts", "turbo"),
    [
        ({f"{CPU}/intel_pstate/no_turbo": "0"}, True),
        ({f"{CPU}/cpufreq/boost": "1"}, True),
        ({f"{CPU}/cpufreq/boost": "0"}, False),
        ({f"{CPU}/cpufreq/policy0/boost": "1", f"{CPU}/cpufreq/policy1/boost": "1"}, True),
        ({f"{CPU}/cpufreq/policy0/boost": "1", f"{CPU}/cpufreq/policy1/boost": "0"}, None),
        ({f"{CPU}/cpufreq/boost": "perhaps"}, None),
    ],
)
def test_turbo_is_asked_of_whichever_driver_there_is(files, texts, turbo):
    assert machine(files(texts))["turbo"] is turbo


CONTROLLERS = {"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory"}


@pytest.mark.parametrize(
    ("texts", "quota"),
    [
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, UNLIMITED),
        ({"proc/self/cgroup": "0::/a/b"}, UNLIMITED),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "sys/fs/cgroup/a/cpu.max": "100000 50000",
            },
            2.0,
        ),
        ({"proc/self/cgroup": "2:cpu:/docker\n1:memory:/docker"}, None),
    ],
)
def test_the_strictest_visible_control_group_decides(files, texts, quota):
    assert machine(files({**CONTROLLERS, **texts}))["cpu_quota"] == quota


def test_the_first_version_of_control_groups_is_not_read(files):
    root = files({"proc/self/cgroup": "1:cpu:/\n0::/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000"})
    assert machine(root)["cpu_quota"] is None


def test_hypervisors(files):
    assert machine(files({"proc/cpuinfo": "flags\t: fpu hypervisor sse2"}))["virtual"] is True
    named = machine(files({"sys/hypervisor/type": "xen"}))
    assert (named["virtual"], named["hypervisor"]) == (True, "xen")


def test_a_processor_without_flags_does_not_tell(files):
    assert machine(files({"proc/cpuinfo": "Features\t: fp asimd"}))["virtual"] is None


JEMALLOC = "7f00-7f01 r-xp 0 00:00 1 /opt/lib/libjemalloc.so.2"


@pytest.mark.parametrize(
    ("maps", "preloaded", "allocator"),
    [
        (JEMALLOC, "/opt/lib/libjemalloc.so.2", "jemalloc"),
        (JEMALLOC.replace("jemalloc.so.2", "tcmalloc_minimal.so.4"), "libtcmalloc_minimal.so.4 other.so", "tcmalloc"),
        (JEMALLOC, "", None),  # a library may have brought it along for itself
        ("/usr/lib/libc.so.6", "/not/there/libjemalloc.so.2", "the C library's"),
    ],
)
def test_an_allocator_counts_when_it_is_preloaded_and_there(files, maps, preloaded, allocator):
    assert machine(files({"proc/self/maps": maps}), preloaded)["allocator"] == allocator


def test_variables_that_matter_are_kept_and_paths_are_not():
    environ = {
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_TRACE": "/home/someone/trace",
        "OMP_NUM_THREADS": "4",
        "HOME": "/home/someone",
        "LD_PRELOAD": "/opt/lib/libjemalloc.so.2",
        "SECRET": "no",
    }
    assert variables(environ) == {
        "MALLOC_ARENA_MAX": "2",
        "OMP_NUM_THREADS": "4",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }


def test_the_environment_holds_the_machine_and_is_plain_json(files, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/opt/lib/libjemalloc.so.2")
    root = files({"proc/self/maps": JEMALLOC, f"{CPU}/smt/active": "0"})
    found = json.loads(json.dumps(environment({"devices": {}, "threads": 3, "torch": "2"}, root)))
    assert (found["threads"], found["machine"]["allocator"], found["machine"]["smt"]) == (3, "jemalloc", False)
    assert "/opt/lib" not in json.dumps(found)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux tells")
def test_on_this_machine_the_affinity_is_what_python_says():
    assert machine()["affinity"] == sorted(os.sched_getaffinity(0))
