"""What two fingerprints mean for a time: the same, advice, or refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.machine.fingerprint import fingerprint
from harness.records import Fingerprint
from harness.verdict.comparability import Comparability, Level, comparability_of, differences, worst

CPU = {"model": "Some CPU", "capability": "AVX2", "memory_gib": 24}
CUDA = {"model": "Some Card", "capability": "9.0", "driver": "550.1", "memory_gib": 80}
HERE = Fingerprint(
    "abc", {"python": "3.11.7", "torch": "2.14.1"}, {"threads": 2, "system": "Linux x86_64", "cpu": CPU, "cuda": CUDA}
)


def changed(device: str = "", **fields: object) -> Fingerprint:
    """HERE with some fields of a device, or of the whole machine, as given; None leaves a field out."""
    before = HERE.machine[device] if device else HERE.machine
    after = {name: value for name, value in {**before, **fields}.items() if value is not None}
    return replace(HERE, machine={**HERE.machine, device: after} if device else after)


def versions(**found: str) -> Fingerprint:
    return replace(HERE, versions={**HERE.versions, **found})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_machine_is_the_same_as_itself(device):
    assert comparability_of(HERE, replace(HERE, source="another"), device) == Comparability(Level.SAME)


@pytest.mark.parametrize(
    ("now", "device", "reason"),
    [
        (changed("cpu", model="Other"), "cpu", "cpu model: Some CPU then, Other now"),
        (changed("cpu", capability="AVX512"), "cpu", "cpu capability: AVX2 then, AVX512 now"),
        (changed(threads=4), "cpu", "threads: 2 then, 4 now"),
        (changed(threads=4), "cuda", "threads: 2 then, 4 now"),
        (changed("cuda", model="Other"), "cuda", "cuda model: Some Card then, Other now"),
        (changed("cuda", capability="8.0"), "cuda", "cuda capability: 9.0 then, 8.0 now"),
    ],
)
def test_another_machine_is_refused_in_words(now, device, reason):
    standing = comparability_of(HERE, now, device)
    assert (standing.level, standing.reasons) == (Level.REFUSED, (reason,))
    assert "harness baseline RUN --out FILE" in standing.remedy
    assert "harness ab" in standing.remedy


@pytest.mark.parametrize(
    ("now", "device", "reason"),
    [
        (changed("cuda", driver="560.0"), "cuda", "cuda driver: 550.1 then, 560.0 now"),
        (changed("cuda", memory_gib=96), "cuda", "cuda memory_gib: 80 then, 96 now"),
        (changed("cuda", cudnn="9.1"), "cuda", "cuda cudnn: unknown then, 9.1 now"),
        (changed("cpu", capability=None), "cpu", "cpu capability: AVX2 then, unknown now"),
        (changed(system="Linux aarch64"), "cpu", "system: Linux x86_64 then, Linux aarch64 now"),
        (versions(torch="2.15.0"), "cpu", "torch: 2.14.1 then, 2.15.0 now"),
        (versions(python="3.12.1"), "cuda", "python: 3.11.7 then, 3.12.1 now"),
    ],
)
def test_what_is_beside_the_machine_makes_it_advice(now, device, reason):
    assert comparability_of(HERE, now, device) == Comparability(Level.COMPARABLE, (reason,))


@pytest.mark.parametrize("empty", [None, ""])
@pytest.mark.parametrize(
    ("device", "field"), [("cpu", "model"), ("", "threads"), ("cuda", "model"), ("cuda", "threads"), ("cuda", "driver")]
)
def test_what_must_be_known_and_is_not_is_refused_on_either_side(device, field, empty):
    place = "" if field == "threads" else device
    lacking = changed(place, **{field: None})
    if empty == "":
        lacking = changed(place, **{field: ""})
    name = f"{place} {field}".strip()
    then = comparability_of(lacking, HERE, device or "cpu")
    now = comparability_of(HERE, lacking, device or "cpu")
    both = comparability_of(lacking, lacking, device or "cpu")
    assert {then.level, now.level, both.level} == {Level.REFUSED}
    assert then.reasons[0].startswith(f"{name}: unknown then, ")
    assert now.reasons[0].endswith(" then, unknown now")
    assert both.reasons == (f"{name}: unknown then, unknown now",)
    assert "make a baseline on this machine" in then.remedy
    assert f"run where {name} can be read" in now.remedy
    assert ("nvidia-smi" in now.remedy) == (field == "driver")


def test_a_processor_needs_no_driver():
    assert "driver" not in HERE.machine["cpu"]
    assert comparability_of(HERE, HERE, "cpu").level is Level.SAME


def test_a_device_that_was_not_there_is_refused():
    assert comparability_of(changed(cuda=None), HERE, "cuda").level is Level.REFUSED
    assert comparability_of(HERE, HERE, "cuda:1").level is Level.REFUSED


def test_a_refusal_says_only_what_refuses():
    both = replace(versions(torch="2.15.0"), machine=changed(threads=4).machine)
    assert comparability_of(HERE, both, "cpu").reasons == ("threads: 2 then, 4 now",)


@pytest.mark.parametrize("other", [changed("cuda", model="Other"), changed("cuda", driver=None), changed(cuda=None)])
def test_devices_that_a_cell_does_not_use_do_not_matter(other):
    assert comparability_of(HERE, other, "cpu").level is Level.SAME


def test_what_a_worker_finds_out_about_a_processor_can_be_held_against_itself():
    probe = {
        "threads": 2, "torch": "2.14.1", "devices": {"cpu": {"absent": None, "facts": {
            "model": "Some CPU", "capability": "AVX2", "memory_bytes": 24 * 2**30, "driver": None}}},
    }  # fmt: skip
    made = fingerprint(probe)
    assert comparability_of(made, made, "cpu").level is Level.SAME
    assert comparability_of(made, Fingerprint.from_json(made.to_json()), "cpu").level is Level.SAME


def test_of_two_devices_the_stronger_objection_counts():
    advice, refused = (Comparability(level, ("because",)) for level in (Level.COMPARABLE, Level.REFUSED))
    assert worst([Comparability(), advice]) is advice
    assert worst([refused, advice, Comparability()]) is refused


def test_a_note_says_what_follows_for_the_times():
    refused = comparability_of(HERE, changed(threads=4), "cpu").note("cpu")
    assert refused.startswith("times on cpu are not compared (threads: 2 then, 4 now): make a baseline")
    advice = comparability_of(HERE, versions(torch="2.15.0"), "cpu").note("cpu")
    assert advice == "times on cpu are advice and fail nothing (torch: 2.14.1 then, 2.15.0 now)"
    assert Comparability().note("cpu") == ""


def test_differences_name_every_field_once():
    now = replace(changed(threads=4, cuda=None), versions={**HERE.versions, "torch": "2.15.0"})
    assert differences(HERE, HERE) == ()
    assert set(differences(HERE, now)) == {
        "torch: 2.14.1 then, 2.15.0 now", "threads: 2 then, 4 now", "cuda model: Some Card then, unknown now",
        "cuda capability: 9.0 then, unknown now", "cuda driver: 550.1 then, unknown now",
        "cuda memory_gib: 80 then, unknown now",
    }  # fmt: skip
    assert len(differences(HERE, now)) == 6


words = st.sampled_from([None, "a", "b"])
devices = st.dictionaries(st.sampled_from(["model", "capability", "driver", "memory_gib", "runtime"]), words)
machines = st.fixed_dictionaries({}, optional={"threads": words, "system": words, "cpu": devices, "cuda": devices})
fingerprints = st.builds(
    Fingerprint, st.just("abc"), st.dictionaries(st.sampled_from(["torch", "python"]), words), machines
)


@given(fingerprints, fingerprints, st.sampled_from(["cpu", "cuda"]))
def test_it_does_not_matter_which_came_first_and_same_means_no_difference(a, b, device):
    there, back = comparability_of(a, b, device), comparability_of(b, a, device)
    assert there.level is back.level
    assert bool(there.reasons) == (there.level is not Level.SAME)
    assert bool(there.remedy) == (there.level is Level.REFUSED)
    if there.level is not Level.REFUSED:
        own = [a.machine[device], b.machine[device]]
        assert own[0]["model"] == own[1]["model"]
        assert a.machine["threads"] == b.machine["threads"]
        assert device == "cpu" or all(facts["driver"] for facts in own)
        assert set(there.reasons) <= set(differences(a, b))
    assert comparability_of(a, a, device).level is not Level.COMPARABLE
