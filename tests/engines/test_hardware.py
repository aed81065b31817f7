"""Machine facts are facts: complete, plain JSON, and the same a moment later."""

import json

import psutil

from engines.hardware import available_memory_bytes, machine_facts


def test_facts_are_plain_json_and_stable():
    facts = machine_facts()
    assert json.loads(json.dumps(facts)) == facts == machine_facts()


def test_facts_name_the_machine():
    facts = machine_facts()
    assert facts["processor"]
    assert facts["memory_bytes"] == psutil.virtual_memory().total
    assert facts["logical_cores"] >= 1
    assert facts["system_name"]


def test_available_memory_is_between_nothing_and_all():
    assert 0 < available_memory_bytes() <= psutil.virtual_memory().total
