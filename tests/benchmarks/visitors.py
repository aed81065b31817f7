"""Many visitors at once on a shared app: errors, waits against what the line said, memory, and the owner's page.

Each visitor logs in, opens the page's session, and goes on sending prompts with a pause between them, through the
same gate and the same limits as in life. Every few seconds a worker is killed. Figures:

- errors: sends that failed with anything but a documented sentence about a limit; runs that ended as failed although
  no worker was killed under them; finished runs that the history lacks
- over: runs that waited longer than the line had said at most
- owner_p95_ms: how long the owner's page takes to be told what has changed, the same question that a browser asks
- memory of the app's process at the start, in the middle and at the end

Run: python -m tests.benchmarks.visitors [--visitors 50] [--seconds 300] [--demo] [--check]
--demo: on the bundled model through ONNX Runtime GenAI instead of echo workers (use 8 visitors).
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path

import psutil

from engines.environments.environments import Environments
from engines.hardware import machine_facts
from engines.models.library import ModelLibrary
from engines.protocol import Target
from engines.runtime.manager import EngineManager
from storage.store import Store
from tests.helpers.http import ask
from ui.access import Role
from ui.chat.gates import Limits
from ui.chat.settings import Settings
from ui.chat.turns import TurnError, Turns
from ui.heap import give_back_at_once
from ui.page import build
from ui.share import visitor_page
from ui.share.door import Door
from ui.share.logins import Accounts, Logins
from ui.share.settings import Made, ShareSettings
from ui.share.sharing import Sharing
from ui.share.visitors import Visitors
from ui.theme import launch_options

PASSWORD = "benchmark password"
ECHO = (Target("echo", "CPU", "100"), Target("echo-two", "CPU", "100"))
DEMO = (Target("onnxruntime-genai", "CPU", "int4"),)
KILL_EVERY_S = 10.0
PROMPT = "Tell me about AI PCs, please, and about what an NPU is good for, in a few sentences of your own."


class Crowd:
    """The app, its visitors, and what happened to them."""

    def __init__(self, data_dir: Path, targets: tuple[Target, ...], specs=None):
        options = {"specs": specs} if specs else {}
        self.store, library = Store(data_dir / "arena.sqlite3"), ModelLibrary(data_dir)
        self.manager = EngineManager(data_dir, library, Environments(data_dir), **options)
        self.turns = Turns(self.manager, self.store, machine_facts)
        accounts = Accounts()
        for name, role in (("owner", Role.OWNER), ("visitor", Role.VISITOR)):
            accounts.add(name, role, PASSWORD)
        self.door = Door(logins=Logins(accounts), locked=True)
        self.door.visitors_welcome = True
        self.visitors = Visitors(self.door, self.store, self.turns)
        self.visitors.open_targets(targets)
        self.visitors.set_limits(
            **{**asdict(Limits()), "runs_per_minute": 60, "run_s": 60, "concurrent_runs": 4}
        )
        sharing = Sharing(self.door, ShareSettings(), Made(), 0, lambda port: None)
        parts = (self.manager, self.store, self.turns, library)
        self.page = build(*parts, Environments(data_dir), (sharing, self.visitors))
        guests = visitor_page.build(*parts, self.visitors, lambda: "the benchmark")
        _, self.address, _ = self.page.launch(
            server_name="127.0.0.1",
            quiet=True,
            prevent_thread_lock=True,
            **launch_options(self.door, visitors_page=lambda: guests),
        )
        self.manager.availability()
        self.targets, self.lock = targets, threading.Lock()
        self.finished: list[str] = []
        self.waits: list[float] = []
        self.counts = {"sent": 0, "finished": 0, "stopped": 0, "failed": 0, "busy": 0, "errors": 0, "over": 0}
        self.kills: list[float] = []

    def count(self, name: str) -> None:
        with self.lock:
            self.counts[name] += 1

    def visit(self, until: float) -> None:
        token = self.door.logins.open("visitor", Role.VISITOR)[0]
        conversation = None
        while time.monotonic() < until:
            login = self.door.logins.find(token)
            visitor = self.visitors.of(login)
            panels = [(1, random.choice(self.targets))]
            try:
                turn = self.visitors.send(
                    visitor, PROMPT, panels, Settings(max_new_tokens=48), conversation_id=conversation
                )
            except TurnError as error:
                self.count("busy" if "minute" in str(error) or "line" in str(error) else "errors")
                time.sleep(1)
                continue
            self.count("sent")
            conversation = turn.conversation_id if random.random() < 0.6 else None
            self.watch(turn, token)
            time.sleep(random.uniform(0.5, 4))

    def watch(self, turn, token: str) -> None:
        run, began, most = turn.runs[0], time.monotonic(), None
        waited = None
        while not run.done.wait(0.2):
            self.door.logins.find(token)  # as the page's questions do
            progress = run.view().progress
            in_line = progress is not None and progress.stage == "queue" and "at most" in progress.text
            if in_line and most is None:
                number, unit = progress.text.rsplit("at most ", 1)[1].split()
                most = float(number) * (60 if unit == "min" else 1)
            elif not in_line and most is not None and waited is None:
                waited = time.monotonic() - began
        waited = waited if waited is not None else 0.0
        view = run.view()
        with self.lock:
            self.counts[view.phase if view.phase in self.counts else "errors"] += 1
            self.waits.append(waited)
            if most is not None and waited > most + 2:
                self.counts["over"] += 1
            if view.phase == "finished":
                self.finished.append(run.run_id)

    def kill_workers(self, until: float) -> None:
        while time.monotonic() + KILL_EVERY_S < until:
            time.sleep(KILL_EVERY_S)
            slots = [slot for slot in self.manager._slots.values() if slot.worker and slot.worker.alive]
            if slots:
                victim = random.choice(slots)
                self.kills.append(time.monotonic())
                psutil.Process(victim.worker.pid).kill()
                self.manager.retry(victim.target)

    def lost(self) -> int:
        """Finished runs that are not finished rows of the history."""
        with self.store.file.reading() as db:
            kept = {row[0] for row in db.execute("SELECT id FROM runs WHERE status = 'finished'")}
        return len(set(self.finished) - kept)

    def close(self) -> None:
        self.visitors.close()
        self.turns.stop_everything()
        self.page.close(verbose=False)
        self.manager.shutdown()
        self.store.close()


def owners_delays(crowd: Crowd, until: float, delays: list[float]) -> None:
    """Ask as the owner's page does, five times a second."""
    cookie = ask(crowd.address, "/login", form={"name": "owner", "password": PASSWORD}).cookie()
    live = next(b for b in crowd.page.blocks.values() if getattr(b, "elem_id", "") == "live")
    body = {
        "data": {"key": "none", "everything": False},
        "component_id": live._id,
        "fn_name": "changes",
        "session_hash": "owner-bench",
    }
    while time.monotonic() < until:
        started = time.perf_counter()
        answer = ask(crowd.address, "/gradio_api/component_server", json_body=body, cookie=cookie)
        delays.append(1000 * (time.perf_counter() - started) if answer.status == 200 else float("inf"))
        time.sleep(0.2)


def measure(visitors: int, seconds: float, demo: bool) -> dict[str, float]:
    from tests.ui.conftest import SPECS

    give_back_at_once()
    process, delays = psutil.Process(), []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as data_dir:
        crowd = Crowd(Path(data_dir), DEMO if demo else ECHO, None if demo else SPECS)
        for target in crowd.targets:
            crowd.turns.send("warm", [(1, target)], Settings(max_new_tokens=2)).wait(300)
        start = process.memory_info().rss / 1e6
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=crowd.visit, args=(until,)) for _ in range(visitors)]
        threads.append(threading.Thread(target=crowd.kill_workers, args=(until,)))
        threads.append(threading.Thread(target=owners_delays, args=(crowd, until, delays)))
        for thread in threads:
            thread.start()
        time.sleep(seconds / 2)
        middle = process.memory_info().rss / 1e6
        for thread in threads:
            thread.join(seconds + 120)
        end = process.memory_info().rss / 1e6
        figures = {**crowd.counts, "kills": len(crowd.kills), "lost": crowd.lost()}
        crowd.close()
    delays.sort()
    crowd.waits.sort()
    figures |= {
        "wait_p95_s": crowd.waits[int(0.95 * len(crowd.waits))] if crowd.waits else 0.0,
        "owner_p95_ms": delays[int(0.95 * len(delays))] if delays else 0.0,
        "start_mb": start,
        "middle_mb": middle,
        "end_mb": end,
    }
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--demo", action="store_true", help="the bundled model instead of echo workers")
    parser.add_argument("--check", action="store_true", help="fail when a figure misses its mark")
    arguments = parser.parse_args()
    figures = measure(arguments.visitors, arguments.seconds, arguments.demo)
    print(json.dumps({name: round(value, 1) for name, value in figures.items()}, indent=2))
    missed = figures["errors"] or figures["over"] or figures["lost"] or figures["owner_p95_ms"] > 250
    missed = missed or figures["failed"] > figures["kills"] * 4
    return 1 if missed and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
