"""docs/add-a-family.md, followed literally: its two files and its command, in a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add-a-family.md").read_text("utf-8")


def followed(tmp_path):
    """The folders that the page speaks of, with the files that it asks for."""
    for name in ("evalkit", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "_catalogues"))
    for name in ("pyproject.toml", "model_zoo", "protocols", "reports", "mini", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    blocks = re.findall(r"^`([\w/]+\.py)`:\n\n```python\n(.*?)```", PAGE, re.S | re.M)
    blocks += re.findall(r"`(tests/[\w/]+\.py)`\n[^`]*?```python\n(.*?)```", PAGE, re.S)
    assert [name for name, _ in blocks] == ["evalkit/adapters/acme.py", "tests/adapters/oracles/acme.py"]
    for name, code in blocks:
        (tmp_path / name).write_text(code, "utf-8")


def run(tmp_path, *words):
    env = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, env=env, capture_output=True, text=True)


def test_the_page_works_as_written(tmp_path):
    followed(tmp_path)
    (command,) = re.findall(r"^\$ (pytest .*)$", PAGE, re.M)
    told = run(tmp_path, *command.split(), "-q", "-p", "no:cacheprovider", "--ignore", "tests/test_docs_family.py",
               "--ignore", "tests/docs")  # fmt: skip
    assert told.returncode == 0, told.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", told.stdout)[1]) > 30


def test_the_new_family_is_inspected(tmp_path):
    followed(tmp_path)
    script = (
        "import torch; from tests.adapters.oracles import acme; torch.save(acme.files(depth=12)[0].content, 'acme.pth')"
    )
    subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, check=True
    )
    told = run(tmp_path, "evalkit.cli.main", "inspect", "acme.pth")
    assert told.returncode == 0, told.stderr
    assert re.search(r"family +acme\b", told.stdout)
    assert "decoder" in told.stdout
    assert torch.__version__
