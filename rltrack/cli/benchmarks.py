"""Commands that measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rltrack.cli.shared import EXIT_ERROR, AsJson, benchmark, print_json, the_root

Only = Annotated[list[str] | None, typer.Option(help="Only this case; may be repeated.")]
MarkdownFile = Annotated[Path | None, typer.Option(help="Markdown file to write.", show_default=False)]


def _notify(text: str) -> None:
    typer.echo(text, err=True)


def _finish(text: str, passed: bool, output: Path | None = None) -> None:
    """Print a table, write it to a file, and fail where a target is missed."""
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    typer.echo(text)
    if not passed:
        raise typer.Exit(EXIT_ERROR)


@benchmark.command()
def scores(
    configs: Annotated[Path, typer.Option(help="Folder of the configurations.")] = Path("configs"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, 2, … for each case.")] = 5,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at a time, one core each.")] = 2,
    only: Annotated[list[str] | None, typer.Option(help="Only this configuration; may be repeated.")] = None,
    output: MarkdownFile = None,
) -> None:
    """Train the tuned settings over several seeds, and compare with rl_zoo3's published scores.

    An interrupted one resumes. All five cases with five seeds take about an hour of two cores.
    """
    from rltrack.benchmarks.scores import as_markdown, run_scores

    rows = run_scores(configs, the_root(), seeds=seeds, jobs=jobs, only=only or (), notify=_notify)
    text = as_markdown(rows, "rltrack benchmark scores")
    _finish(text, all(row["passed"] for row in rows), output)


@benchmark.command()
def pause(
    repeats: Annotated[int, typer.Option(min=1, help="Checkpoints of each case.")] = 15,
    as_json: AsJson = False,
) -> None:
    """Measure how long training pauses for a checkpoint, against SB3's own save. Takes a minute, on an idle machine."""
    import dataclasses

    from rltrack.benchmarks.pause import as_markdown, measure_pauses

    rows = measure_pauses(repeats)
    print_json([dataclasses.asdict(row) for row in rows]) if as_json else typer.echo(as_markdown(rows))
    if not all(row.passed for row in rows):
        raise typer.Exit(EXIT_ERROR)


@benchmark.command()
def overhead(
    only: Only = None,
    trials: Annotated[int, typer.Option(min=1, help="Trainings of each case, bare and with rltrack.")] = 5,
    output: MarkdownFile = None,
) -> None:
    """Measure what tracking costs a training, against SB3 alone, its TensorBoard writer and its MLflow recipe.

    All cases take about half an hour, on an idle machine.
    """
    from rltrack.benchmarks.overhead import as_markdown, measure_overhead

    rows = measure_overhead(only or (), trials=trials, notify=_notify)
    text = as_markdown(rows, "rltrack benchmark overhead")
    _finish(text, all(row.passed for row in rows), output)


@benchmark.command()
def acceleration(
    only: Annotated[list[str] | None, typer.Option(help="Only cases with this in their name; may be repeated.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trainings of each kind and case.")] = 5,
) -> None:
    """Measure a training with rltrack, everything logged, against SB3's `learn()`. All cases take a quarter of an hour, on an
    idle machine.
    """
    from rltrack.benchmarks.acceleration import as_markdown, measure_acceleration

    rows = measure_acceleration(only or (), trials, notify=_notify)
    _finish(as_markdown(rows, "rltrack benchmark acceleration"), all(row.passed for row in rows))


@benchmark.command()
def delivery(
    records: Annotated[int, typer.Option(min=1000, help="Records of the long journal.")] = 1_000_000,
) -> None:
    """Measure the speed of delivery, and the memory of trainer and shipper over a long journal. Takes about five minutes."""
    from rltrack.benchmarks import delivery as measured

    rate = measured.measure_rate()
    memories = [measured.measure_shipper_memory(records, _notify), measured.measure_trainer_memory(records, _notify)]
    passed = rate >= measured.RATE_BAR and all(item.passed for item in memories)
    _finish(measured.as_markdown(rate, memories), passed)


@benchmark.command()
def zoo(trials: Annotated[int, typer.Option(min=1, help="Trainings of each.")] = 5) -> None:
    """Compare the whole of `rltrack train` with rl_zoo3's training, wall time from a cold start. Takes five minutes."""
    from rltrack.benchmarks.zoo import as_markdown, compare_with_zoo

    found = compare_with_zoo(trials, notify=_notify)
    _finish(as_markdown(found), found.passed)


@benchmark.command()
def outage(
    seconds: Annotated[float, typer.Option(min=1.0, help="Length of each training.")] = 60.0,
    trials: Annotated[int, typer.Option(min=1, help="Trainings of each kind.")] = 3,
) -> None:
    """Compare training speed with MLflow's server up and with no server answering. Takes seven minutes."""
    from rltrack.benchmarks.outage import as_markdown, measure_outage

    typer.echo(as_markdown(measure_outage(seconds, trials, notify=_notify)))


@benchmark.command("flow")
def orchestration(trials: Annotated[int, typer.Option(min=1, help="Trainings of each.")] = 3) -> None:
    """Compare `rltrack flow train` with `rltrack train`, whole commands of a minute, with a server running."""
    from rltrack.benchmarks.orchestration import as_markdown, measure_orchestration

    found = measure_orchestration(trials, notify=_notify)
    _finish(as_markdown(found), found.passed)


@benchmark.command("resume")
def resume_matrix(
    jobs: Annotated[int, typer.Option(min=1, help="Cases at a time, one core each.")] = 2,
    only: Only = None,
    output: MarkdownFile = None,
) -> None:
    """Kill and resume a training of each algorithm and kind of environment, and compare with one that was not.

    All cases take about ten minutes of two cores.
    """
    from rltrack.benchmarks.resume import as_markdown, run_matrix

    rows = run_matrix(only or (), jobs=jobs, notify=_notify)
    _finish(as_markdown(rows), all(row.expected for row in rows), output)


@benchmark.command()
def gate(
    trials: Annotated[int, typer.Option(min=10, help="Simulated decisions of each kind.")] = 1000,
    output: MarkdownFile = None,
) -> None:
    """Simulate how often the promotion gate errs, on returns of real agents. Takes about five minutes."""
    from rltrack.benchmarks.gate import as_markdown, measure_gate

    rows = measure_gate(the_root(), trials, _notify)
    _finish(as_markdown(rows), all(row.passed for row in rows), output)


@benchmark.command()
def serving(calls: Annotated[int, typer.Option(min=10, help="Calls of each kind.")] = 300) -> None:
    """Measure latency and throughput of a served champion against SB3's own predict. Takes a minute."""
    import tempfile

    from rltrack.benchmarks.serving import as_markdown, measure_serving
    from rltrack.runs import Root
    from rltrack.tracking.shipper import prepare_process

    prepare_process()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_serving(Root(folder), calls, _notify)
    typer.echo(as_markdown(rows))


@benchmark.command("device")
def benchmark_device(
    threads: Annotated[int, typer.Option(min=1, help="Torch threads on the CPU.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Time PPO's iteration on CPU and GPU, for several networks and batch sizes: what `device: auto` decides by."""
    import dataclasses

    from rltrack.benchmarks.devices import measure

    found = measure(threads, lambda text: typer.echo(text, err=as_json))
    if as_json:
        print_json([dataclasses.asdict(item) for item in found])


@benchmark.command()
def scale(
    runs: Annotated[list[int] | None, typer.Option(help="Numbers of runs; default 100, 300, 1000.")] = None,
) -> None:
    """Time commands and MLflow's page with many runs in one store. Takes a quarter of an hour."""
    import tempfile

    from rltrack.benchmarks.scale import as_markdown, measure_scale

    with tempfile.TemporaryDirectory() as folder:
        rows = measure_scale(Path(folder), sorted(runs or [100, 300, 1000]), _notify)
    typer.echo(as_markdown(rows))
