"""What the tags and the description of a registered model say, and that older ones are still read."""

from __future__ import annotations

import json

import pytest

from rltrack.errors import ConfigurationError
from rltrack.registry.gate import Gate
from rltrack.registry.registered import Event, Registered, VersionDecision, as_markdown, check_model_name

REASON = "difference 1 on 30 paired episodes, 95 % interval 1 to 1, which is above 0"
EVENTS = [
    Event("promoted", 1, REASON, 1, "run@v4", "234889db", 1795759554, 1),
    Event("rolled back", 6, "from version 8", 6, "run@v9", "", 1795759555, 2),
    Event("moved", 8, "the alias was removed by another program", None, "", "", 1795759556, 3),
]


def test_an_event_is_one_short_line_in_a_tag():
    assert EVENTS[0].to_tag() == (
        f"promoted | version 1 | champion 1 | 2026-11-27 06:05:54 | run@v4 | 234889db | {REASON}"
    )
    assert [Event.from_tag(event.to_tag(), event.number) for event in EVENTS] == EVENTS
    odd = Event("degraded", 1, "a | b\n| c", 1, "run@v4", "", 7, 1)
    assert Event.from_tag(odd.to_tag(), 1).reason == "a / b / c"


def test_events_and_decisions_of_older_versions_are_read():
    event = {"kind": "promoted", "version": 1, "reason": "r", "champion": 1, "source": "run@v4", "time": 1.5}
    event["decision"] = "234889db" * 4
    assert Event.from_tag(json.dumps(event), 3) == Event("promoted", 1, "r", 1, "run@v4", "234889db", 1.5, 3)
    gate = Gate(episodes=30, floor=2.0)
    decision = {"id": "234889db" * 4, "time": 1.5, "promoted": False, "against": None, "reason": "r"}
    decision["gate"] = gate.to_record()
    old = Registered(1, "m", None, {"rltrack.decision": json.dumps(decision)}).decision
    assert old == VersionDecision("234889db" * 4, False, None, gate.label, "r")
    assert Registered(1, "m", None, {"rltrack.decision": old.to_tag()}).decision == old


@pytest.mark.parametrize(
    "other", [{"episodes": 31}, {"level": 0.9}, {"floor": 0.0}, {"kind": "not_inferior", "margin": 1.0}]
)
def test_the_label_distinguishes_gates(other):
    assert Gate(**{"episodes": 30, **other}).label != Gate(episodes=30).label
    assert Gate(episodes=30, level=0.95).label == "superior, 30 episodes, level 0.95"
    assert Gate(episodes=30, floor=2).label == Gate(episodes=30, floor=2.0).label  # equal gates


def test_the_description_is_a_table_that_the_column_of_a_database_holds():
    text = as_markdown(EVENTS)
    assert text.startswith("No champion.")
    assert "| 1&ensp; | 2026-11-27 06:05&ensp; | promoted&ensp; | 1&ensp; | run@v4&ensp; | difference 1 on" in text
    many = [Event("refused", 1, "x" * 400, 1, "run@v4", "234889db", 1795759554, number + 1) for number in range(200)]
    text = as_markdown(many)
    assert len(text) <= 5000, "PostgreSQL refuses a longer one"
    assert "| 200&ensp; |" in text
    assert "The newest of 200 events" in text


@pytest.mark.parametrize("name", ["a", "größe", "a" * 100, "a" + "模" * 66])
def test_names_of_models(name):
    assert check_model_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a b", "a" * 101, "a" + "模" * 95])
def test_names_that_no_file_can_have(name):
    with pytest.raises(ConfigurationError, match="of 200 bytes at most"):
        check_model_name(name)


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_list_of_models_names_the_level_of_the_decision(level, capsys):
    from rltrack.console.models import print_models
    from rltrack.registry.overview import _row

    decision = VersionDecision("0" * 32, True, None, Gate(level=level).label, "r")
    tags = {"rltrack.decision": decision.to_tag(), "rltrack.mean_return": "9", "rltrack.interval": "8 to 10"}
    row = {"name": "m", "champion": _row(Registered(1, "", None, tags)), "challenger": None, "history": []}
    print_models([row], "sqlite:///x")
    assert f"({100 * level:g} % interval 8 to 10)" in " ".join(capsys.readouterr().out.split())
