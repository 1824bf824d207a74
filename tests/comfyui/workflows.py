"""Turns a saved workflow (UI format) into a prompt (API format), as the page does when Run is pressed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOT_RUN = {"Note", "MarkdownNote"}


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, dict]:
    """The API-format prompt; raises AssertionError for unknown node types and links of the wrong type."""
    links = {link[0]: link for link in workflow["links"]}
    nodes = {node["id"]: node for node in workflow["nodes"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOT_RUN:
            continue
        assert node["type"] in object_info, f"unknown node type {node['type']}"
        inputs = _widgets(node, object_info[node["type"]])
        for socket in node.get("inputs", []):
            if socket.get("link") is None:
                continue
            _, source, slot, target, target_slot, kind = links[socket["link"]]
            assert (target, node["inputs"][target_slot]["name"]) == (node["id"], socket["name"])
            produced = object_info[nodes[source]["type"]]["output"][slot]
            assert produced == kind, f"link {socket['link']} says {kind}, but its source gives {produced}"
            assert kind == socket["type"], f"link {socket['link']}: {kind} into a {socket['type']} socket"
            inputs[socket["name"]] = [str(source), slot]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def _widgets(node: dict, info: dict) -> dict[str, Any]:
    values = iter(node.get("widgets_values", []))
    result = {}
    for section in ("required", "optional"):
        for name in info["input_order"].get(section, []):
            spec = info["input"][section][name]
            kind, options = spec[0], (spec[1] if len(spec) > 1 else {})
            if not (isinstance(kind, list) or kind in WIDGET_TYPES) or options.get("forceInput"):
                continue
            result[name] = next(values)
            if options.get("control_after_generate") or name in ("seed", "noise_seed"):
                next(values)
            if options.get("image_upload"):
                next(values, None)
    leftover = list(values)
    assert not leftover, f"{node['type']} has values for widgets it does not have: {leftover}"
    return result


def load_prompt(path: Path, object_info: dict[str, Any], **changes: Any) -> dict[str, dict]:
    """The prompt of a workflow file; changes are ``NodeType__input=value``, applied to every node of that type."""
    prompt = to_prompt(json.loads(path.read_text()), object_info)
    for change, value in changes.items():
        kind, name = change.split("__")
        nodes = [node for node in prompt.values() if node["class_type"] == kind]
        assert nodes, f"no {kind} in {path.name}"
        for node in nodes:
            node["inputs"][name] = value
    return prompt
