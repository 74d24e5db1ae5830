"""The order of the stages in dvc.lock."""

import re
from pathlib import Path

from flows.dag.graph import opened


def sort_lock(root: Path) -> None:
    """Put dvc.lock into the order in which `dvc repro` writes it, whichever stage ended first."""
    with opened(root) as project, project.repo.lock:
        file = project.root / "dvc.lock"
        if not file.exists():
            return
        head, *blocks = re.split(r"^(?=  \S)", file.read_text(), flags=re.MULTILINE)
        place = {name: i for i, name in enumerate(project.repro_order)}
        last = len(place)
        blocks.sort(key=lambda block: place.get(block.strip().partition(":")[0], last))
        text = head + "".join(blocks)
        if text != file.read_text():
            temporary = file.with_suffix(".lock.part")
            temporary.write_text(text)
            temporary.replace(file)
