"""Everything the app owns, built once and handed to the page and to the commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from engines.endpoints.registry import Endpoints
from engines.environments.environments import Environments
from engines.models.library import ModelLibrary
from engines.runtime.manager import EngineManager
from storage.measurements import Measurements
from storage.store import Store
from ui.chat.turns import Turns
from ui.measure.desk import Desk

SPACE_PATIENCE_S = 30.0


@dataclass
class Arena:
    """Everything the app owns, built once."""

    data_dir: Path
    store: Store
    library: ModelLibrary
    environments: Environments
    endpoints: Endpoints
    manager: EngineManager
    turns: Turns
    measurements: Measurements
    desk: Desk

    def close(self) -> None:
        self.desk.close()
        self.turns.stop_everything()
        self.manager.shutdown()
        self.store.close(self._patience_s())

    def _patience_s(self) -> float:
        """How long ending waits for the disk to take what was said; the terminal is told."""
        trouble = self.store.recorder.trouble
        if trouble is None:
            return 0.0
        text = f"{trouble} Ending waits for that, {SPACE_PATIENCE_S:.0f} s at most."
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
        return SPACE_PATIENCE_S


OpenArena = Callable[[argparse.Namespace], AbstractContextManager[Arena]]
"""Opens the app's parts for as long as a command runs; every worker is gone afterwards."""
