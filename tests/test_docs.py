"""What README promises is there: commands parse, files exist, its result table is the one of the result files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from spiketext.cli import build_parser
from spiketext.results import load as load_result

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


def test_result_rows_of_readme_are_those_of_the_result_files():
    section = README.split("## Results")[1].split("\n## ")[0]
    rows = [line.strip("| ").split("|") for line in section.splitlines() if line.startswith("| ")][1:]
    every = {name: load_result(ROOT / "experiments", name, None)["cells"] for name in ("sst2", "mr", "subj")}
    assert len(rows) == len({cell["row"] for cells in every.values() for cell in cells if cell["values"]})
    for row, *said in ([part.strip() for part in line] for line in rows):
        mine = {name: {cell["metric"]: cell for cell in cells if cell["row"] == row and cell["values"]}
                for name, cells in every.items()}  # fmt: skip
        found = [cells.get("accuracy") for cells in mine.values()]
        assert any(found), row
        scores = [_score(cell["values"][0], cell["paper"]) if cell else "" for cell in found]
        rates = [round(cells["firing_rate"]["values"][0]) for cells in mine.values() if "firing_rate" in cells]
        seconds = [round(cell["wall_s"][0]) for cell in found if cell]
        assert said == [*scores, _span(rates), _span(seconds)], row


def _score(value: float, paper: float | None) -> str:
    return f"{value:.2f}" + (f" ({paper:.2f})" if paper else "")


def _span(numbers: list[int]) -> str:
    return " to ".join(str(number) for number in sorted({min(numbers), max(numbers)})) if numbers else ""
