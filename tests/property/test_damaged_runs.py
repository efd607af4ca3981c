"""Any byte of any file of a run may change, go or come: never a silent wrong result, never a traceback.

Two real runs are trained once for all. Then one file of a copy is damaged, and a command is run on it in this process. What it
prints must be what it prints of the undamaged run, or the damage must be named.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from rltrack.checkpoints import CheckpointStore
from rltrack.cli import run_command
from rltrack.errors import RltrackError
from rltrack.journal import read_journal
from rltrack.runs import Root
from rltrack.tracking.delivery import NoDelivery
from rltrack.tracking.shipper import prepare_process, ship_run
from rltrack.training.trainer import Trainer
from tests.resume import test_lost_records as scripted

CONFIG = {
    "agent": {"algorithm": "PPO", "policy": "MlpPolicy", "device": "cpu", "hyperparameters": {"n_steps": 32, "batch_size": 32}},
    "environment": {"id": "CartPole-v1", "n_envs": 1},
    "training": {"total_timesteps": 160, "eval_freq": 64, "checkpoint_freq": 64},
    "evaluation": {"episodes": 2},
}  # fmt: skip

QUICK = [["show", "one", "--json"], ["show", "one"], ["journal", "one"], ["journal", "one", "--json"], ["runs", "--json"], ["runs"],
         ["checkpoints", "one", "--json"], ["checkpoints", "one", "--verify", "--json"],
         ["export", "one", "--output", "OUT/m.csv", "--force"],
         ["export", "one", "--format", "json", "--output", "OUT/m.json", "--force"], ["compare", "one", "two", "--json"],
         ["config", "--name", "one", "--algo", "ppo", "--env", "CartPole-v1"],
         ["checkpoints", "one", "--pin", "best", "--json"], ["prune", "--match", "one", "--json"]]  # fmt: skip
SLOW = [["eval", "one", "--episodes", "2", "--json"], ["eval", "one@last", "--episodes", "2", "--json"],
        ["plot", "one", "--output", "OUT"], ["resume", "one"], ["sync", "one"], ["sync", "--all"],
        ["compare", "one", "two", "--no-log", "--output", "OUT"]]  # fmt: skip


@dataclass
class Template:
    """What was trained, and what each command prints of it."""

    root: Path
    whole: Path
    said: dict[str, str]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("damaged") / "root"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rltrack.tracking.delivery.Delivery", lambda run: NoDelivery())
        patch.setattr("rltrack.tracking.delivery.deliver_left_behind", lambda root: 0)
        prepare_process()
        for name, seed in (("one", 0), ("two", 1)):
            Trainer({**CONFIG, "name": name, "seed": seed}, root=root).train()
            run = Root(root).find(name)
            run.store().pin(run.store().find("best"))
            assert ship_run(run, patience=0.0, notify=lambda _: None) == 0
        found = Template(root, root.parent / "whole", {})
        shutil.copytree(root / "runs", found.whole, symlinks=True)
        out = root.parent / "out"
        out.mkdir()
        for command in (*QUICK, *SLOW):
            code, said, problems = call(command, root, out)
            assert (code, problems) == (0, ""), (command, said, problems)
            found.said[" ".join(command)] = said
            restore(found)
    return found


def restore(template):
    shutil.rmtree(template.root / "runs")
    shutil.copytree(template.whole, template.root / "runs", symlinks=True)


def call(command, root, out):
    """Run a command in this process; return its exit code, what it printed (and wrote), and what it said on stderr."""
    told, problems = io.StringIO(), io.StringIO()
    words = [word.replace("OUT", str(out)) for word in command]
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(problems):
        code = run_command(["--root", str(root), *words])
    said = told.getvalue()
    for file in sorted(out.iterdir()):
        if file.suffix in (".csv", ".json"):
            said += file.read_text()
        file.unlink()
    return code, shown(said).replace(str(out), "OUT"), problems.getvalue()


def shown(text):
    """Without what changes from one second to the next."""
    text = re.sub(r"[\dhmsd. ]+ago *", " AGO", text)
    text = re.sub(r'"delivery": \{.*?\n  \}', '"delivery"', text, flags=re.DOTALL)
    text = re.sub(r'"plots": \[.*?\]', '"plots"', text, flags=re.DOTALL)
    text = re.sub(r'"(bytes|created|seconds)": [\d.e+-]+', r'"\1"', text)
    return text


def files_of(folder):
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and "exports" not in path.parts
    )


def damage(rng, run_folder):
    """Damage one file in one way; return the file and the way."""
    files = files_of(run_folder)
    few = [path for path in files if path.suffix in (".jsonl", ".json", ".yaml", ".seal") and path.parent == run_folder]
    path = rng.choice(few if rng.random() < 0.6 else files)
    data = path.read_bytes()
    at = rng.randrange(len(data) + 1)
    length = rng.choice([1, 1, 2, 7, 40, 400])
    noise = bytes(rng.randrange(256) for _ in range(length))
    lines = data.splitlines(keepends=True)
    way = rng.choice(["flip", "flip", "change", "cut", "truncate", "insert", "append", "line", "twice", "swap lines", "delete",
                      "empty", "folder", "swap files", "zeros", "unreadable", "digit"])  # fmt: skip
    if way == "flip" and data:
        at %= len(data)
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
    elif way == "digit" and (digits := [index for index, byte in enumerate(data) if 48 <= byte <= 57]):
        at = rng.choice(digits)
        path.write_bytes(data[:at] + str((int(chr(data[at])) + 1) % 10).encode() + data[at + 1 :])
    elif way == "change":
        path.write_bytes(data[:at] + noise + data[at + length :])
    elif way == "cut":
        path.write_bytes(data[:at] + data[at + length :])
    elif way == "truncate":
        path.write_bytes(data[:at])
    elif way == "insert":
        path.write_bytes(data[:at] + noise + data[at:])
    elif way == "append":
        path.write_bytes(data + noise + rng.choice([b"", b"\n"]))
    elif way in ("line", "twice", "swap lines") and lines:
        index = rng.randrange(len(lines))
        if way == "line":
            del lines[index]
        elif way == "twice":
            lines.insert(rng.randrange(len(lines) + 1), lines[index])
        else:
            other = rng.randrange(len(lines))
            lines[index], lines[other] = lines[other], lines[index]
        path.write_bytes(b"".join(lines))
    elif way == "delete":
        path.unlink()
    elif way == "empty":
        path.write_bytes(b"")
    elif way == "folder":
        path.unlink()
        path.mkdir()
    elif way == "swap files":
        other = rng.choice(files)
        theirs = other.read_bytes()
        other.write_bytes(data)
        path.write_bytes(theirs)
    elif way == "zeros":
        path.write_bytes(b"\0" * len(data))
    elif way == "unreadable":
        path.chmod(0)
    return path, way


@contextlib.contextmanager
def without_root_rights():
    """Files are read and written as an ordinary user does it, so that their modes count."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def give_to_anybody(root):
    for path in (root, *root.rglob("*")):
        if os.geteuid() == 0 and not path.is_symlink():
            os.chown(path, 65534, 65534)
    for path in [*root.parents][:5]:
        with contextlib.suppress(OSError):
            path.chmod(0o755)


def examine(template, commands, count, seed, out):
    """Damage and run; return how often each way was tried."""
    rng, tried = random.Random(seed), Counter()
    found = []
    for _ in range(count):
        path, way = damage(rng, template.root / "runs" / "one")
        where = path.relative_to(template.root / "runs" / "one")
        command = rng.choice(commands)
        tried[way] += 1
        try:
            if way == "unreadable":
                give_to_anybody(template.root)
                give_to_anybody(out)
                with without_root_rights():
                    code, said, problems = call(command, template.root, out)
            else:
                code, said, problems = call(command, template.root, out)
        except BaseException as error:
            found.append(f"{way} {where}: {' '.join(command)}: {type(error).__name__}: {error}")
        else:
            named = "Damaged: " in problems or "Error: " in problems or "Known: " in problems or "damaged" in said
            same = said == template.said[" ".join(command)]
            if code not in range(5) or "Traceback" in problems + said:
                found.append(f"{way} {where}: {' '.join(command)}: exit code {code}: {problems[-300:]}")
            elif not same and not named and not problems.strip():
                other = difference(said, template.said[" ".join(command)])
                found.append(f"{way} {where}: {' '.join(command)}: another result, silently: {other}")
            elif code == 0 and "Damaged: " in problems:
                found.append(f"{way} {where}: {' '.join(command)}: damage, and exit code 0")
        restore(template)
    assert found == [], f"{len(found)} of {count}:\n" + "\n".join(found[:40])
    return tried


def difference(ours, theirs):
    pairs = zip(ours.splitlines(), theirs.splitlines(), strict=False)
    return next(
        (f"{one!r} for {other!r}"[:300] for one, other in pairs if one != other), f"{len(ours)} for {len(theirs)}"
    )


def test_commands_name_what_is_damaged(template, tmp_path):
    examine(template, QUICK, 50, seed=1, out=tmp_path)


def test_commands_that_load_models_name_what_is_damaged(template, tmp_path):
    examine(template, SLOW, 6, seed=2, out=tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(10, 20))
def test_thousands_of_damages(template, tmp_path, seed):
    examine(template, QUICK, 400, seed=seed, out=tmp_path)
    examine(template, SLOW, 60, seed=seed, out=tmp_path)


def resume_damaged(own_root, count, seed):
    """A resume of a damaged run ends as an undamaged one, or refuses with words; what is recorded is what was trained."""
    rng = random.Random(seed)
    scripted.loop("whole").run()
    scripted.interrupted()
    runs, kept = Root().runs_folder, own_root.parent / "kept"
    shutil.copytree(runs, kept)
    whole = scripted.without_clock(scripted.numbered(Root().find("whole")))
    policy = policy_of("whole")
    good = {json.dumps(record, sort_keys=True) for record in whole}
    outcomes = Counter()
    for _ in range(count):
        path, way = damage(rng, runs / "run")
        if way == "unreadable":
            path.chmod(0o644)
        what = f"{way} {path.relative_to(runs)}"
        try:
            scripted.loop().run()
        except (RltrackError, OSError) as error:
            outcomes["refused" if str(error) else "silently wrong"] += 1
        else:
            assert policy_of("run") == policy, what
            run = Root().find("run")
            records = scripted.without_clock(scripted.numbered(run))
            assert all(json.dumps(record, sort_keys=True) in good for record in records), what
            numbers = [record["seq"] for record in records]
            labelled = any(record.get("missing") for record in read_journal(run.journal_file))
            assert numbers == list(range(1, len(whole) + 1)) or labelled, what
            outcomes["labelled" if labelled else "whole"] += 1
        shutil.rmtree(runs)
        shutil.copytree(kept, runs)
    return outcomes


def policy_of(name):
    store = CheckpointStore(Root().find(name).path / "checkpoints")
    return store.read(store.find("last"))["policy"]


def test_a_damaged_run_resumes_as_it_would_have(own_root):
    outcomes = resume_damaged(own_root, 25, seed=3)
    assert outcomes["whole"] > outcomes["refused"]
    assert outcomes["labelled"] > 0
    assert outcomes["silently wrong"] == 0


@pytest.mark.nightly
def test_many_damaged_runs_resume_as_they_would_have(own_root):
    assert resume_damaged(own_root, 600, seed=4)["silently wrong"] == 0
