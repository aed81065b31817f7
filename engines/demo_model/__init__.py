"""The bundled demo model: a tiny Phi-3, the corpus it learned from, and the scripts that train and test it.

Importing this package loads nothing; only ``WEIGHTS`` is offered, the folder with the trained model.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
