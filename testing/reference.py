"""The reference pages that follow from the code: ``python -m testing.reference`` writes them into docs/reference.

And the commands that pages show.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from diffprivacy.cli import parser

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"


def blocks(page: Path) -> list[list[str]]:
    """The lines of each fenced block, continued ones joined, without comments."""
    found = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = (block.replace("\\\n", " ").splitlines() for block in found)
    return [[line.split(" #")[0].strip() for line in block] for block in lines]


def commands() -> str:
    """All commands with their options, from the parsers."""
    pages = ["# Commands", "", "Made from the parsers by `python -m testing.reference`."]
    for name, command in _subcommands(parser()).items():
        pages += ["", f"## diffprivacy {name}", ""]
        groups = [group for group in command._action_groups if group._group_actions]
        for group in groups:
            if group.title not in ("positional arguments", "options"):
                pages += ["", f"**{group.title}**", ""]
            pages += ["| option | meaning |", "|---|---|"] if group is groups[0] or len(pages[-1]) == 0 else []
            pages += [_row(action) for action in group._group_actions if action.dest != "help"]
    return "\n".join(pages) + "\n"


def _subcommands(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (choice,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    return dict(choice.choices)


def _row(action: argparse.Action) -> str:
    metavar = action.metavar or ("{" + ",".join(action.choices) + "}" if action.choices else "")
    names = ", ".join(action.option_strings) or str(metavar)
    value = f" {metavar}" if action.option_strings and action.nargs != 0 and metavar else ""
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    return f"| `{names}{value}` | {text} |".replace("FILE|DIR", "FILE or DIR")


def nodes() -> str:
    """All nodes with their sockets and widgets, from the English texts, which follow the schemas."""
    texts = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    pages = [
        "# Nodes",
        "",
        "Made from the schemas by `python -m testing.reference`. Each node has a help page in ComfyUI.",
    ]
    for node_id, node in sorted(texts.items(), key=lambda item: item[1]["display_name"]):
        help_page = f"[help page](../../web/docs/{node_id}.md)"
        pages += ["", f"## {node['display_name']}", "", f"{node['description']} (`{node_id}`, {help_page})", ""]
        pages += ["| input | meaning |", "|---|---|"] if node.get("inputs") else []
        pages += [f"| {i['name']} | {_cell(i)} |" for i in node.get("inputs", {}).values()]
        outputs = [f"{o['name']}" for o in node.get("outputs", {}).values()]
        pages += ["", f"Outputs: {', '.join(outputs)}."] if outputs else []
    return "\n".join(pages) + "\n"


def _cell(entry: dict[str, str]) -> str:
    return entry.get("tooltip", "").replace("|", "\\|").replace("\n", " ")


PAGES = {"commands.md": commands, "nodes.md": nodes}


def main() -> None:
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
