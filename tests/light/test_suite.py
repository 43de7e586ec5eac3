"""What a user may write, and what each mistake is answered with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.errors import HarnessError, SuiteError
from harness.records import Variant
from harness.suite import load_suite
from harness.suite.schema import schema_text

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "suites").rglob("*.yaml"))


def only_part(suite):
    (part,) = suite.parts.values()
    return part


def test_one_value_stands_for_a_list_and_options_are_kept(suite_of):
    part = only_part(suite_of("axes: {block: [conv, {orepa: {scaling: scalar}}], backbone: layer}\nmetrics: params"))
    assert part.axes.backbone == [Variant("layer")]
    assert part.axes.block[1] == Variant("orepa", {"scaling": "scalar"})
    assert part.axes.block[1].label == "orepa(scaling=scalar)"
    assert [m.name for m in part.metrics] == ["params"]


def test_the_default_budget(suite_of):
    budget = suite_of().budget
    assert (budget.rounds, budget.seconds, budget.timeout, budget.memory) == (10, 1.0, 600.0, None)


@pytest.mark.parametrize(
    ("text", "line", "says", "remedy"),
    [
        ("axes: {block: conv, backbone: layer}\nmetrics: params\nbudgte: {}", 3, "'budgte'", "budget"),
        ("axes:\n  block: conv\n  backbon: layer\nmetrics: params", 3, "'backbon'", "backbone"),
        ("axes: {block: [conv, repvg], backbone: layer}\nmetrics: params", 1, "'repvg'", "repvgg"),
        ("axes:\n  block: conv\n  backbone: resnet81\nmetrics: params", 3, "'resnet81'", "resnet18"),
        ("axes: {block: conv, backbone: layer}\nmetrics: [latncy]", 2, "'latncy'", "latency"),
        ("axes: {block: conv, backbone: layer, dtype: fp16}\nmetrics: params", 1, "'fp16' is not a dtype", "float16"),
        ("axes: {block: conv, backbone: layer, device: gpu}\nmetrics: params", 1, "'gpu'", "cuda"),
        ("axes: {block: conv, backbone: layer, kernel_size: 4}\nmetrics: params", 1, "kernel_size 4", "odd"),
        ("axes: {block: conv, backbone: layer, kernel_size: '3'}\nmetrics: params", 1, "integer", "odd, 1 to 13"),
        ("axes: {block: conv, backbone: layer, batch_size: 0}\nmetrics: params", 1, "greater than", "1 or more"),
        ("axes: {block: conv, backbone: layer, image_size: 0}\nmetrics: params", 1, "greater than", "1 or more"),
        ("axes: {block: conv, backbone: layer, optimizer: sdg}\nmetrics: params", 1, "'sdg'", "sgd"),
        (
            "axes: {block: conv, backbone: layer, optimizer: {sgd: {implementation: fast}}}\nmetrics: params",
            1,
            "'fast'",
            "foreach",
        ),
        ("axes: {block: conv, backbone: layer, checkpointing: 1}\nmetrics: params", 1, "checkpointing", "true"),
        (
            "axes: {block: conv, backbone: layer}\nmetrics: {max_batch: {memory: 24 gigs}}",
            2,
            "amount of memory",
            "24GiB",
        ),
        ("axes: {block: conv, backbone: layer}\nmetrics: {max_batch: {memory: -1}}", 2, "amount of memory", "24GiB"),
        ("axes: {block: conv, backbone: layer}\nmetrics: {max_batch: {memory: true}}", 2, "amount of memory", "24GiB"),
        ("axes: {block: conv, backbone: layer}\nmetrics: {max_batch: {by: guess}}", 2, "'guess'", "trial"),
        ("axes: {block: {orepa: {prior: 'no'}}, backbone: layer}\nmetrics: params", 1, "prior of orepa", "true, false"),
        (
            "axes: {block: {orepa: {origin: false, average: false, prior: false, point: false, chain: false, separable: false}}, backbone: layer}\nmetrics: params",
            1,
            "nothing left",
            "at least one",
        ),
        (
            "axes: {block: {dbb: {origin: false, point: false, chain: false, average: false}}, backbone: layer}\nmetrics: params",
            1,
            "nothing left",
            "at least one",
        ),
        ("axes: {block: {clb: {width: 100}}, backbone: layer}\nmetrics: params", 1, "width of clb", "128, 256"),
        ("axes: {block: {clb: {width: '64'}}, backbone: layer}\nmetrics: params", 1, "width of clb", "128, 256"),
        ("axes: {block: conv, backbone: {layer: {padding: -1}}}\nmetrics: params", 1, "too small", "0 or more"),
        ("axes: {block: conv, backbone: layer, batch_size: true}\nmetrics: params", 1, "integer", "1 or more"),
        ("axes: {block: conv, backbone: layer, where: stem}\nmetrics: params", 1, "'stem'", "repvgg-paper"),
        ("axes: {block: {orepa: {scalng: none}}, backbone: layer}\nmetrics: params", 1, "'scalng'", "scaling"),
        ("axes: {block: {orepa: {scaling: no-such}}, backbone: layer}\nmetrics: params", 1, "'no-such'", "vector"),
        ("axes: {block: {dbb: {reparam: online}}, backbone: layer}\nmetrics: params", 1, "'online'", "orepa"),
        ("axes: {block: [conv, conv], backbone: layer}\nmetrics: params", 1, "twice", "keep one"),
        ("axes: {block: [], backbone: layer}\nmetrics: params", 1, "at least 1", "one value"),
        ("axes: {block: conv}\nmetrics: params", 1, "backbone is missing", "add backbone"),
        ("axes: {block: conv, backbone: layer}", 1, "metrics is missing", "add metrics"),
        ("axes: {block: conv, backbone: layer}\nmetrics: {accuracy: {epochs: 0}}", 2, "too small", "1 or more"),
        ("axes: {block: conv, backbone: layer}\nmetrics: {accuracy: {epochs: two}}", 2, "not a integer", "integer"),
        ("axes: {block: conv, backbone: layer}\nmetrics: params\ngates: {latency: {}}", 3, "'latency'", "params"),
        ("axes: {block: conv, backbone: layer}\nmetrics: params\nbudget: {rounds: 2.5}", 3, "rounds", "verdict"),
        ("axes: {block: conv, backbone: layer}\nmetrics: params\nbudget: {timeout: soon}", 3, "'soon'", "10m"),
        ("axes: {block: conv, backbone: layer}\nmetrics: params\ncompare: {axis: blok}", 3, "'blok'", "block"),
        (
            "axes: {block: conv, backbone: layer}\nmetrics: params\ncompare: {reference: dbb}",
            3,
            "'dbb'",
            "conv",
        ),
        (
            "axes: {block: conv, backbone: layer}\nmetrics: params\nzip: [[block, image_size, x]]",
            3,
            "axis that is still free",
            "threads",
        ),
        (
            "axes: {block: [conv, acb], backbone: layer}\nmetrics: params\nzip: [[block, image_size]]",
            3,
            "differ in length",
            "equally many",
        ),
        ("axes: {block: conv, backbone: layer}\nmetrics: params\nexclude: 'block = 1'", 3, "not an expression", "=="),
        ("axes: {block: conv, backbone: layer}\nmetrics: params\nexclude: 'block == conv'", 3, "'conv'", "quotes"),
        (
            "axes: {block: conv, backbone: layer}\nmetrics: params\nexclude: '__import__(\"os\")'",
            3,
            "expressions",
            "==",
        ),
        ("axes: {block: conv, backbone: layer, block: dbb}\nmetrics: params", 1, "second time", "keep one"),
        ("axes: {block: conv, backbone: layer}\nmetrics: params\nbudget: {seconds: 1e-3}", 3, "as text", "0.001"),
        ("axes: {block: on, backbone: layer}\nmetrics: params", 1, "YAML reads on as True", "quote"),
        ("axes: {block: conv, backbone: layer}\nmetrics: params\nbudget: {timeout: 1:30}", 3, "base 60", "quote"),
        ("axes: {block: conv, backbone: layer, batch_size: 012}\nmetrics: params", 1, "octal", "write 12"),
        ("axes: {block: conv, backbone: layer, batch_size: 2024-01-01}\nmetrics: params", 1, "timestamp", "quote"),
        ("axes: {block: !!python/name:os.system , backbone: layer}\nmetrics: params", 1, "type", "quote"),
        ("axes: [", 2, "not YAML", "mend"),
        ("- a\n- b", 1, "mapping", "axes"),
        ("", 1, "mapping", "axes"),
        ("axes: {block: conv, backbone: layer}\nmetrics: params\nname: ../../etc", 3, "name", "file"),
    ],
)
def test_a_mistake_is_answered_with_place_and_remedy(tmp_path, text, line, says, remedy):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(SuiteError) as caught:
        load_suite(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}"), message
    assert says in message
    assert remedy in caught.value.remedy, message
    assert len(message.splitlines()) == 2


def test_quoted_words_are_not_surprises(suite_of):
    suite = suite_of("axes: {block: conv, backbone: layer}\nmetrics: params\ndescription: 'on'\nname: '1e-3'")
    assert suite.description == "on"


def test_aliases_work_and_endless_ones_are_refused(suite_of):
    suite = suite_of("axes: {block: &b [conv, acb], backbone: layer, device: cpu}\nmetrics: params")
    assert len(only_part(suite).axes.block) == 2
    with pytest.raises(SuiteError, match="nested"):
        suite_of("axes: {block: conv, backbone: layer}\nmetrics: params\ngates: &g {params: *g}")


def test_overrides_take_the_place_of_axes(suite_of):
    suite = suite_of(overrides=("kernel_size=7", "block=conv,{orepa: {reparam: offline}}"))
    axes = only_part(suite).axes
    assert axes.kernel_size == [7]
    assert [v.label for v in axes.block] == ["conv", "orepa(reparam=offline)"]


@pytest.mark.parametrize(
    ("override", "says"), [("kernel=3", "kernel_size"), ("threads", "AXIS=VALUE"), ("dtype=x", "float")]
)
def test_a_wrong_override_is_refused(suite_of, override, says):
    with pytest.raises(HarnessError) as caught:
        suite_of(overrides=(override,))
    assert says in str(caught.value)


def test_a_missing_file_names_the_suites_there_are(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SuiteError, match=r"suites/.*\.yaml"):
        load_suite("suites/quik.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_suites_load_and_name_the_schema(path):
    load_suite(path)
    first = path.read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.partition("=")[2]).resolve() == ROOT / "docs" / "suite.schema.json"


def test_the_schema_in_docs_is_current():
    assert (ROOT / "docs" / "suite.schema.json").read_text() == schema_text(), "run python -m harness.indexing"


def test_the_schema_knows_blocks_metrics_and_their_places():
    schema = json.loads(schema_text())
    text = json.dumps(schema["$defs"]["Axes"]["properties"]["block"])
    assert '"orepa_vgg"' in text
    assert "name" not in schema["required"]
    assert {"axes", "parts", "metrics", "budget"} <= set(schema["properties"])


PARTS = """
parts:
  training: {axes: {block: [conv, dbb], backbone: resnet18}, metrics: train_step}
  sizes: {axes: {block: conv, backbone: layer, kernel_size: [1, 3]}, compare: {axis: kernel_size}, metrics: latency}
"""


def test_a_suite_may_have_several_parts(suite_of):
    assert list(suite_of(PARTS).parts) == ["training", "sizes"]
    overridden = suite_of(PARTS, overrides=("batch_size=2",))
    assert all(part.axes.batch_size == [2] for part in overridden.parts.values())


@pytest.mark.parametrize(
    ("old", "new", "place", "says"),
    [
        ("conv, dbb", "conv, dbbb", "3:35", "'dbbb'"),
        ("kernel_size: [1", "kernel_sizes: [1", "4:48", "kernel_size"),
        ("metrics: latency", "metric: latency", "4:100", "metrics"),
        ("parts:", "axes: {}\nparts:", "2:1", "beside parts"),
        ("compare: {axis: kernel_size}", "compare: {axes: kernel_size}", "4:80", "axis"),
    ],
)
def test_mistakes_in_parts_have_their_place(suite_of, old, new, place, says):
    with pytest.raises(SuiteError) as caught:
        suite_of(PARTS.replace(old, new))
    assert str(caught.value).startswith(f"test.yaml:{place}"), caught.value
    assert says in str(caught.value)
