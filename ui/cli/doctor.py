"""`python app.py doctor`: what this machine has and which engines can use it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from engines.hardware import machine_facts
from engines.telemetry.sights import sights
from ui import doctor
from ui.arena import OpenArena


def _show(arguments: argparse.Namespace, open_arena: OpenArena) -> int:
    """Print what this machine has and which engines can use it."""
    with open_arena(arguments) as arena:
        availability, facts = arena.manager.availability(), machine_facts()
        if arguments.json:
            print(json.dumps(doctor.doctor_document(availability, facts, seen=sights()), indent=2))
        else:
            print(doctor.doctor_text(availability, facts, seen=sights()))
    return 0


def register(commands: Any, open_arena: OpenArena) -> None:
    """Add `doctor`."""
    command = commands.add_parser("doctor", help="which engines and devices can be used here, and why not")
    command.add_argument("--json", action="store_true", help="one JSON document on stdout")
    command.set_defaults(run=lambda arguments: _show(arguments, open_arena))
