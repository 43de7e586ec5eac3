"""`harness plan --predict`: what each cell would hold, and whether there is room; nothing is measured or skipped."""

from __future__ import annotations

import json
import signal
import time

import pytest

SUITE = """
    axes: {block: [conv, dbb], backbone: resnet10t, batch_size: [2, 64], image_size: 64}
    metrics: [predicted_train_memory]
"""


def test_the_prediction_of_a_plan_is_that_of_a_run(resident, shell):
    suite = resident.suite(SUITE)
    planned = shell.run("plan", suite, "--predict", "--memory", "300MiB", "--format", "json")
    assert planned.returncode == 0, planned.stderr
    found = json.loads(planned.stdout)["predictions"]
    assert shell.run("run", suite, "--out", "out").returncode == 0
    measured = {r["cell"]: r["readings"][0]["values"][0] for r in resident.records(resident.home / "out")}
    assert {cell: one["peak"] for cell, one in found.items()} == measured
    assert len(measured) == 4
    for one in found.values():
        assert one["room"] == 300 * 2**20
        assert one["fits"] is (one["peak"] <= one["room"])
    assert {one["fits"] for one in found.values()} == {True, False}


def test_the_text_says_what_would_not_fit_and_skips_nothing(resident, shell):
    suite = resident.suite(SUITE)
    done = shell.run("plan", suite, "--predict", "--memory", "150MiB", "--only", 'block == "conv"')
    assert done.returncode == 0
    assert "fits 150.0 MiB" in done.stdout
    assert "WOULD NOT FIT" in done.stdout
    assert "1 of 2 cells would not fit (nothing is skipped for that)" in done.stdout


def test_without_a_device_there_is_a_prediction_and_no_verdict(resident, shell):
    suite = resident.suite("""
        axes: {block: conv, backbone: layer, device: [cuda, cpu], image_size: 14}
        compare: {axis: device, reference: cpu}
        metrics: [train_memory]
    """)
    found = json.loads(shell.run("plan", suite, "--predict", "--format", "json").stdout)
    by_device = {found["cells"][cell]["device"]: one for cell, one in found["predictions"].items()}
    assert by_device["cuda"]["peak"] > 0
    assert by_device["cpu"]["fits"] is True
    if by_device["cuda"]["room"] is None:
        assert by_device["cuda"]["fits"] is None


def test_what_cannot_be_predicted_says_why(resident, shell):
    suite = resident.suite("""
        axes: {block: conv, backbone: vgg11_bn, checkpointing: [false, true]}
        compare: {axis: checkpointing}
        metrics: [train_memory]
    """)
    done = shell.run("plan", suite, "--predict")
    assert done.returncode == 0
    assert "unsupported" in done.stdout
    assert "gradient checkpointing" in done.stdout


@pytest.mark.parametrize("amount", ["much", "0", "-1GiB"])
def test_an_amount_that_is_none_is_refused(resident, shell, amount):
    done = shell.run("plan", resident.suite(SUITE), "--predict", f"--memory={amount}")
    assert done.returncode == 2
    assert "not an amount of memory" in done.stderr


def test_ctrl_c_ends_it_at_once_and_leaves_no_process(user):
    # as a command that a shell started in the background
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    suite = user.suite("""
        axes: {block: [conv, dbb, orepa], backbone: [resnet18, resnet50], batch_size: [2, 4, 8, 16], image_size: 64}
        metrics: [predicted_train_memory]
    """)
    process = user.start("plan", suite, "--predict")
    signal.signal(signal.SIGINT, before)
    line = process.stderr.readline()  # the first cell is in hand
    assert line.startswith("[1/24]")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert user.wait_until_alone() == []
