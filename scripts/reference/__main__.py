"""``python -m scripts.reference``, in the checkout."""

from __future__ import annotations

import sys
from pathlib import Path

from scripts.reference import FOLDER, pages

folder = Path(__file__).parents[2] / FOLDER
folder.mkdir(parents=True, exist_ok=True)
for name, text in pages().items():
    (folder / name).write_text(text, encoding="utf-8")
    sys.stdout.write(f"wrote {FOLDER / name}\n")
