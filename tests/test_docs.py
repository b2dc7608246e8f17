"""What README promises is there: commands parse, files exist, its result table is the one of the result files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from spiketext.cli import build_parser
from spiketext.results import results_page

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, flags=re.M | re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("spiketext ")]


def test_readme_shows_commands():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_readme_parses(command):
    parts = shlex.split(command.split("  #")[0].split(" | ")[0])
    assert build_parser().parse_args(parts[1:]).command == parts[1]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_a_link_of_readme_leads_somewhere(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^make ([a-z-]+)", README, flags=re.M))))
def test_a_make_target_of_readme_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)


def test_result_rows_of_readme_are_rows_of_the_result_files():
    page = results_page(ROOT / "experiments")
    rows = [line for line in README.splitlines() if line.startswith("| ") and "±" not in line and "seed" not in line]
    measured = [line for line in rows if line.count("|") == 7 and not line.startswith("| row")]
    assert all(line in page for line in measured)
