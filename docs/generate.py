"""Writes the two pages that are made from the code: ``python docs/generate.py``. A test holds them up to date."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONFIGURATION = """# Configuration reference

<!-- made by docs/generate.py -->

Every key, with its type and default. `rltrack init` writes a file with all of them, `rltrack config FILE` prints
the resolved configuration, `rltrack config --schema` the JSON Schema. [Train](train.md) explains the parts.

A run is resumed only with the same values of the keys that are its *identity*; the others may change from one attempt to the
next.
"""
COMMANDS = """# Command line reference

<!-- made by docs/generate.py -->

`rltrack --install-completion` installs completion of commands, options and names of runs. `--root` may be anywhere in a command.
Exit codes: 0 done, 1 error, 2 usage, 3 stopped by the user or a signal with a resumable version, 4 not promoted. Colours
are for terminals only, and off with `NO_COLOR=1`.
"""


def configuration() -> str:
    """Return the reference of the configuration, from its schema."""
    from rltrack.config import TrainingConfig
    from rltrack.studies.space import SweepSection

    schema = TrainingConfig.model_json_schema()
    sections = ("agent", "environment", "training", "evaluation", "checkpoints", "tracking")
    lines = [CONFIGURATION, "## The run", ""]
    lines += _table(schema, [key for key in schema["properties"] if key not in sections])
    for section in sections:
        model = schema["$defs"][_reference(schema, section)]
        lines += [f"## {section}", "", _text(model["description"]), "", *_table(model, model["properties"])]
        if section == "environment":
            inner = schema["$defs"]["NormalizeConfig"]
            lines += [
                "### environment.normalize",
                "",
                _text(inner["description"]),
                "",
                *_table(inner, inner["properties"]),
            ]
    sweep = SweepSection.model_json_schema()
    lines += ["## sweep", "", "Only for a [sweep](sweep.md#search-for-a-better-configuration); not part of a run.", ""]
    lines += _table(sweep, sweep["properties"], identity=False)
    return "\n".join(lines).rstrip() + "\n"


def _reference(schema: dict[str, Any], section: str) -> str:
    found = re.search(r"#/\$defs/(\w+)", str(schema["properties"][section]))
    assert found is not None, section
    return found[1]


def _table(model: dict[str, Any], keys: Iterable[str], identity: bool = True) -> Iterator[str]:
    yield "| key | value | default |" + (" identity |" if identity else "") + " meaning |"
    yield "|---|---|---|" + ("---|" if identity else "") + "---|"
    for key in keys:
        entry = model["properties"][key]
        empty = {"object": {}, "array": []}.get(entry.get("type", ""))
        default = "required" if key in model.get("required", ()) else f"`{json.dumps(entry.get('default', empty))}`"
        belongs = f" {'' if entry.get('operational') else 'yes'} |" if identity else ""
        yield f"| `{key}` | {_kind(entry)} | {default} |{belongs} {_text(entry.get('description', ''))} |"
    yield ""


def _kind(entry: dict[str, Any]) -> str:
    """What a value may be, in words."""
    if "anyOf" in entry:
        kinds = [_kind(item) for item in entry["anyOf"] if item.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in entry:
        return "mapping"
    if "enum" in entry:
        return ", ".join(f"`{item}`" for item in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    name = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "array": "list",
            "object": "mapping"}.get(entry.get("type", ""), "anything")  # fmt: skip
    limits = []
    for limit, words in (
        ("minimum", "from"),
        ("exclusiveMinimum", "above"),
        ("maximum", "to"),
        ("exclusiveMaximum", "below"),
    ):
        if limit in entry:
            limits.append(f"{words} {entry[limit]:,}")
    return " ".join([name, *limits])


def _text(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")


def commands() -> str:
    """Return the reference of the command line, from its code."""
    import typer
    from typer.cli import get_docs_for_click

    import rltrack.cli  # noqa: F401  (adds the commands)
    from rltrack.cli.shared import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="rltrack", title="Command line reference")
    for hidden in [name for name, item in command.commands.items() if item.hidden]:  # type: ignore[attr-defined]
        text = re.sub(rf"## `rltrack {hidden}`.*?(?=\n## )", "", text, flags=re.DOTALL)
        text = re.sub(rf"^\* `{hidden}`: .*\n", "", text, flags=re.MULTILINE)
    text = "".join(_with_summaries(section, command) for section in re.split(r"(?=^##+ `)", text, flags=re.MULTILINE))
    text = text.replace("\b", "")
    text = re.sub(r"\n+((?:^(?:rltrack|curl|prefect) .*\n)+)", r"\n\n```sh\n\1```\n", text, flags=re.MULTILINE)
    text = re.sub(r"\*\*Usage\*\*:\n\n```console\n\$ (.*)\n```\n", r"`\1`\n", text)
    text = re.sub(r"^\* `--help`: .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\*\*Options\*\*:\n\n(?!\*)|\*\*(Options|Arguments)\*\*:\n\n(?=\*)", "", text)
    text = re.sub(r"\n[ \t]*(\n[ \t]*)+\n", "\n\n", text)
    return text.replace("# Command line reference\n", COMMANDS, 1).rstrip() + "\n"


def _with_summaries(section: str, command: Any) -> str:
    """Complete the summaries of a group's commands, which typer cuts."""
    heading = re.match(r"##+ `rltrack (.*)`", section)
    for name in heading[1].split() if heading else ():
        command = getattr(command, "commands", {}).get(name)
    for name, item in getattr(command, "commands", {}).items():
        whole = " ".join((item.help or "").partition("\n\n")[0].split())
        section = re.sub(
            rf"^\* `{name}`: .*$", lambda _, line=f"* `{name}`: {whole}": line, section, flags=re.MULTILINE
        )
    return section


PAGES = {"configuration.md": configuration, "cli.md": commands}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
        print(HERE / name)
