"""The namespace has no package file of its own: several folders share it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_no_init_at_the_root_of_the_namespace() -> None:
    roots = [ROOT / folder / "banksman" for folder in ("core", "producers", "processors", "enforcer", "console", "cli")]
    assert all(root.is_dir() for root in roots)
    assert not [root for root in roots if (root / "__init__.py").exists()]
