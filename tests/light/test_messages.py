"""Orders as they cross a process: all of them, unchanged, and nothing less."""

from __future__ import annotations

import json

import pytest

from harness.planning import plan
from harness.worker.messages import Order, asks


@pytest.fixture
def order(suite_of):
    (task, *_) = plan(suite_of()).tasks
    return Order(task, task.key, "print", lockstep=True, slowed={task.cells[0].id: 0.05})


def test_an_order_survives_json(order):
    assert Order.from_json(json.loads(json.dumps(order.to_json()))) == order


def test_what_other_revisions_read_of_an_order_keeps_its_names(order):
    assert list(order.to_json()) == ["task", "key", "fingerprint", "lockstep", "slowed"]


@pytest.mark.parametrize("field", ["task", "key", "fingerprint", "lockstep", "slowed"])
def test_an_order_without_a_field_is_none(order, field):
    value = order.to_json()
    del value[field]
    with pytest.raises(KeyError):
        Order.from_json(value)


def test_only_a_request_for_a_turn_is_answered():
    assert asks({"turn": True})
    assert not any(asks(message) for message in ({"turn_done": True}, {"begin": ["c", "m"]}, {"record": {}}))
