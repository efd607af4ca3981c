"""A journal that lost records, as after a restore from an older backup, is never called whole."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from rltrack.checkpoints import CheckpointStore
from rltrack.cli import run_command
from rltrack.config import LoopSettings
from rltrack.console.runs import run_details
from rltrack.errors import CheckpointCorrupt, ConfigurationError, JournalDamaged, NameTaken
from rltrack.journal import Journal, read_journal
from rltrack.journal.seal import seal_file
from rltrack.runs import Root
from rltrack.runs.completeness import JournalPosition
from rltrack.runs.history import RunHistory
from rltrack.tracking.report import RunReport
from rltrack.training.train_loop import TrainingLoop
from tests.support.agents import ScriptedAgent, TinyEnv

STEPS = 200


class ExactAgent(ScriptedAgent):
    """Its environment has no noise and no memory of an episode before, so that a resume is exact."""

    def __init__(self):
        super().__init__(skills=[index / 10 for index in range(1, 40)])

    def why_not_exact(self):
        return None

    def capture(self):
        return super().capture() | {"environment": {"noise": 0.0}}


def loop(name="run", *, stop_at=None, resume="exact", store=None):
    class Stop:
        def on_iteration_end(self, progress, stats):
            if progress.env_steps == stop_at:
                made.stop("enough")

    settings = LoopSettings.from_flat(
        {"total_timesteps": STEPS, "checkpoint_freq": 20, "eval_freq": 50, "eval_episodes": 2}
    )
    settings = settings.model_copy(
        update={"checkpoints": settings.checkpoints.model_copy(update={"resume": resume, "store": store})}
    )
    made = TrainingLoop(
        ExactAgent(), TinyEnv(noise=0.0), settings=settings, eval_env=TinyEnv(noise=0.0), name=name, resume=True, seed=1,
        hooks=[Stop()] if stop_at else [],
    )  # fmt: skip
    return made


def numbered(run):
    return [
        {key: value for key, value in record.items() if key not in ("time", "seconds")}
        for record in read_journal(run.journal_file)
        if "seq" in record
    ]


def without_clock(records):
    for record in records:
        for key in [key for key in record.get("values", {}) if key.startswith("time/")]:
            del record["values"][key]
    return records


def lines_of(run):
    return run.journal_file.read_bytes().splitlines(keepends=True)


def step_of(line):
    record = json.loads(line)
    return record["step"] if "seq" in record else 0


def cut_after(run, step):
    """As it was in a backup that was made at `step`."""
    lines = lines_of(run)
    last = max(index for index, line in enumerate(lines) if 0 < step_of(line) <= step)
    run.journal_file.write_bytes(b"".join(lines[: last + 1]))


def interrupted(name="run", at=120):
    loop(name, stop_at=at).run()
    return Root().find(name)


def last_attempt(run):
    return run.attempts()[-1]


@pytest.mark.slow
def test_a_journal_from_an_older_backup_leaves_a_gap_that_is_reported_everywhere(own_root, capsys):
    loop("whole").run()
    run = interrupted()
    version = run.store().find("last")
    cut_after(run, 60)
    first = numbered(run)[-1]["seq"] + 1
    last = version.journal["next_seq"] - 1
    gap = f"records {first} to {last} (between 60 and 120 env steps)"

    assert run_command(["show", "run"]) == 1  # before anything is resumed
    said = capsys.readouterr().out
    assert gap in said
    assert "but the record of this run has a gap" in said
    details = run_details(run)
    assert (details["exact"], details["missing"]) == (False, [gap])

    loop().run()
    attempt = last_attempt(run)
    assert attempt["exact"] is False
    assert attempt["missing"] == [gap]
    [warning] = [
        r["message"] for r in read_journal(run.journal_file) if r["kind"] == "warning" and "gap" in r["message"]
    ]
    assert warning.startswith("The training is resumed exactly, but its record has a gap")
    assert gap in warning
    # what was trained is what an uninterrupted run trains, with its own numbers; only the gap is missing
    whole = {record["seq"]: record for record in without_clock(numbered(Root().find("whole")))}
    ours = {record["seq"]: record for record in without_clock(numbered(run))}
    assert ours == {seq: record for seq, record in whole.items() if not first <= seq <= last}
    one, other = (CheckpointStore(Root().find(name).path / "checkpoints") for name in ("whole", "run"))
    assert one.read(one.find("last"))["policy"] == other.read(other.find("last"))["policy"]

    details = run_details(run)
    assert (details["exact"], details["missing"]) == (False, [gap.replace("and 120", "and 130")])
    assert run_command(["show", "run"]) == 0, "the record is labelled with it"
    report = RunReport(run, {})
    report.catch_up(run.journal_file.stat().st_size, 0)
    assert report.tags()["rltrack.exact"] == "false"
    assert gap in report.tags()["rltrack.missing"]


def test_strict_refuses_and_writes_nothing(own_root):
    run = interrupted()
    cut_after(run, 60)
    before = run.journal_file.read_bytes()
    with pytest.raises(ConfigurationError, match=r"its journal lacks records \d+ to \d+"):
        loop(resume="strict").run()
    assert run.journal_file.read_bytes() == before


def test_a_whole_journal_is_whole(own_root):
    run = interrupted()
    assert run_details(run)["missing"] == []
    loop(stop_at=160).run()
    # the process died and its newest version is gone: the journal is longer than what is resumed, which is normal
    shutil.rmtree(run.store().find("last").path)
    loop().run()
    assert [attempt["exact"] for attempt in run.attempts()] == [True, True, True]
    assert all("missing" not in attempt for attempt in run.attempts())
    details = run_details(run)
    assert (details["exact"], details["missing"]) == (True, [])
    seqs = [record["seq"] for record in numbered(run)]
    assert seqs == list(range(1, len(seqs) + 1))


def test_an_inexact_resume_before_is_no_gap(own_root, monkeypatch):
    run = interrupted()
    monkeypatch.setattr(ExactAgent, "why_not_exact", lambda self: "for this test")
    shutil.rmtree(run.store().find("last").path)
    loop(stop_at=160).run()
    monkeypatch.undo()
    monkeypatch.setenv("RLTRACK_ROOT", str(own_root))
    loop().run()
    assert [attempt["exact"] for attempt in run.attempts()] == [True, False, True]
    assert run_details(run)["missing"] == []


@pytest.mark.slow
def test_after_an_inexact_resume_lost_numbers_are_not_given_out_again(own_root, monkeypatch):
    run = interrupted()
    cut_after(run, 60)
    first, last = numbered(run)[-1]["seq"] + 1, run.store().find("last").journal["next_seq"] - 1
    monkeypatch.setattr(ExactAgent, "why_not_exact", lambda self: "for this test")
    loop().run()
    assert "The run's record has a gap" in "".join(r.get("message", "") for r in read_journal(run.journal_file))
    assert last_attempt(run)["missing"] == [f"records {first} to {last} (between 60 and 120 env steps)"]
    seqs = [record["seq"] for record in numbered(run)]
    assert seqs[first - 1] == last + 1
    assert run_details(run)["missing"] == [f"records {first} to {last} (between 60 and 130 env steps)"]


def without_a_line(lines, at):
    return lines[:at] + lines[at + 1 :]


def twice(lines, at):
    return [*lines[: at + 1], *lines[at:]]


def longer(lines, at):
    return [*lines[:at], lines[at][:-1] + b" \n", *lines[at + 1 :]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_a_line, r"record \d+ \(between \d+ and 60 env steps\)"),
        (twice, r"line \d+, which stands twice or in a wrong place \(it was written as line \d+\)"),
        (longer, r"line \d+, which is damaged \(it does not match its checksum\)"),
    ],
)
def test_a_journal_that_was_changed_does_not_fit_its_version(own_root, change, said):
    run = interrupted()
    lines = lines_of(run)
    run.journal_file.write_bytes(
        b"".join(change(lines, next(at for at, line in enumerate(lines) if step_of(line) == 60)))
    )
    found = run_details(run)["missing"]
    assert re.fullmatch(said, found[0])
    assert len(found) == 1 or (
        change is longer and re.fullmatch(r"record \d+ \(between \d+ and 60 env steps\)", found[1])
    )
    loop().run()
    assert last_attempt(run)["exact"] is False
    assert last_attempt(run)["missing"] == found


@pytest.mark.slow
def test_lost_records_without_a_number_are_noticed(own_root):
    run = interrupted()
    loop(stop_at=160).run()  # its first version comes after the records of an attempt
    newest = run.store().find("last")
    run.journal_file.write_bytes(run.journal_file.read_bytes()[: newest.journal["bytes"]])
    [lost] = run_details(run)["missing"]
    assert re.fullmatch(r"\d lines at its end", lost), "what was noted after the version"
    seal_file(run.journal_file).unlink()  # as of an older release
    assert run_details(run)["missing"] == [], "it does not belong to the version"
    attempt = next(index for index, line in enumerate(lines_of(run)) if b'"number":2' in line)
    before = sum(map(len, lines_of(run)[:attempt]))
    size = run.journal_file.stat().st_size
    run.journal_file.write_bytes(run.journal_file.read_bytes()[:before])
    position = JournalPosition("v9", 120, numbered(run)[-1]["seq"] + 1, size)
    [found] = RunHistory.read(run.journal_file, position).missing
    assert re.fullmatch(
        r"its last [\d,]+ bytes, with records of attempts, warnings or checkpoints, written before v9", found
    )


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, b"", b"no journal at all\n"])
def test_without_a_journal_a_run_goes_on_from_its_versions_and_is_labelled(own_root, content, capsys):
    loop("whole").run()
    run = interrupted()
    before = run.configuration_record()
    newest = run.store().find("last")
    run.journal_file.unlink()
    if content is not None:
        run.journal_file.write_bytes(content)
    assert run_command(["show", "run"]) == 1
    assert "newest good version" in capsys.readouterr().err
    loop().run()
    [attempt] = run.attempts()
    assert (attempt["number"], attempt["resumed_from"], attempt["exact"]) == (2, newest.name, False)
    assert f"records 1 to {newest.journal['next_seq'] - 1} (between 0 and 120 env steps)" in attempt["missing"]
    record = run.configuration_record()
    assert {key: record[key] for key in ("run_id", "identity", "agent")} == {
        key: before[key] for key in ("run_id", "identity", "agent")
    }
    assert run.status().is_finished
    ours = without_clock(numbered(run))
    assert ours == without_clock(numbered(Root().find("whole")))[-len(ours) :]
    one, other = (CheckpointStore(Root().find(name).path / "checkpoints") for name in ("whole", "run"))
    assert one.read(one.find("last"))["policy"] == other.read(other.find("last"))["policy"]


def test_without_a_journal_the_versions_of_another_configuration_are_not_gone_on_with(own_root):
    run = interrupted()
    run.journal_file.unlink()
    with pytest.raises(NameTaken, match="another configuration"):
        TrainingLoop(ExactAgent(), TinyEnv(noise=0.0), total_timesteps=STEPS, name="run", resume=True, seed=2).run()
    assert not run.journal_file.exists()


@pytest.mark.slow
def test_a_journal_without_its_beginning_gets_it_from_a_version(own_root):
    run = interrupted()
    before = run.configuration_record()["run_id"]
    run.journal_file.write_bytes(b"".join(lines_of(run)[3:]))
    assert run.configuration_record()["run_id"] == before
    loop().run()
    assert run.configuration_record()["run_id"] == before
    assert run.has_beginning()
    assert run.attempts()[-1]["missing"]


def test_with_neither_journal_nor_a_version_that_can_be_read_nothing_is_begun(own_root):
    run = interrupted()
    run.journal_file.unlink()
    for folder in run.store().folders():
        (folder / "manifest.json").write_bytes(b"")
    with pytest.raises(JournalDamaged, match=r"none of the \d+ version\(s\) next to it can be read"):
        loop().run()
    assert not run.journal_file.exists()


@pytest.mark.slow
def test_the_journal_of_another_run_does_not_go_with_these_versions(own_root):
    run, other = interrupted("run"), interrupted("other", at=60)
    shutil.copy(other.journal_file, run.journal_file)
    with pytest.raises(
        (CheckpointCorrupt, NameTaken), match="put back the journal and the versions of one and the same run"
    ):
        loop().run()


@pytest.mark.slow
def test_a_damaged_line_is_named_and_training_goes_on(own_root, capsys):
    run = interrupted()
    lines = lines_of(run)
    run.journal_file.write_bytes(b"".join([*lines[:5], b"{broken\n", *lines[5:]]))
    for words in (["show", "run"], ["journal", "run"], ["export", "run"], ["plot", "run"], ["runs"]):
        assert run_command(words) == 1
        assert "It lacks line 6, which is damaged" in capsys.readouterr().err
    loop().run()
    assert run.attempts()[-1]["missing"][0].startswith("line 6, which is damaged")
    assert run_command(["show", "run"]) == 0
    assert "Known: " in capsys.readouterr().err


@pytest.mark.slow
def test_attempts_are_counted_on_where_the_journal_forgot_one(own_root):
    run = interrupted()
    backup = run.journal_file.read_bytes()
    loop(stop_at=160).run()
    run.journal_file.write_bytes(backup)
    loop().run()
    assert [attempt["number"] for attempt in run.attempts()] == [1, 3]


def test_numbers_that_were_lost_are_kept_free(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for step in range(1, 6):
        journal.write("metrics", step, values={"a": 1.0})
    journal.close()
    journal = Journal(path)
    journal.resume_from(9, 5, exact=False)
    journal.write("metrics", 9, values={"a": 1.0})
    assert RunHistory.read(path).missing == ["records 6 to 8 (between 5 and 9 env steps)"]


@pytest.mark.slow
def test_a_journal_shorter_than_its_copy_in_the_store_is_not_mixed_with_it(own_root, tmp_path, monkeypatch):
    monkeypatch.setenv("RLTRACK_SIGNING_KEY", "a key for tests only")
    store = f"file://{tmp_path}/store"
    (tmp_path / "store").mkdir()
    loop(stop_at=120, store=store).run()
    run = Root().find("run")
    before = sorted(path for path in (tmp_path / "store").rglob("*"))
    whole = run.journal_file.read_bytes()
    cut_after(run, 60)
    with pytest.raises(JournalDamaged, match=r"the journal here lost its end\. Move .* away and resume again"):
        loop(store=store).run()
    assert sorted(path for path in (tmp_path / "store").rglob("*")) == before, "no attempt was begun there"
    run.path.rename(tmp_path / "away")
    loop(store=store).run()  # fetched from the store
    run = Root().find("run")
    assert run.journal_file.read_bytes().startswith(whole)
    assert (run_details(run)["exact"], run_details(run)["missing"]) == (True, [])


def test_of_two_copies_of_a_run_none_is_resumed(own_root):
    """Both would be delivered to one MLflow run."""
    run = interrupted()
    copy = run.path.with_name("copy")
    shutil.copytree(run.path, copy)
    for name in ("run", "copy"):
        with pytest.raises(
            NameTaken, match=r"copy and run in .* hold the same run|run and copy in .*rltrack train --from run"
        ):
            loop(name).run()
    assert len(run.attempts()) == 1
    copy.rename(own_root.parent / "copy")
    loop().run()
    assert run.status().is_finished
