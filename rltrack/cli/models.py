"""Commands for registered models: promote, roll back, serve, evaluate; and to compare runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from rltrack.cli.shared import (
    EXIT_ERROR,
    EXIT_NOT_PROMOTED,
    AsJson,
    RunAndVersion,
    app,
    finite,
    print_json,
    the_root,
    working,
)
from rltrack.errors import ConfigurationError, RegistryUnavailable

_PANEL = "Models"
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="A registered model; `rltrack models` lists them.")]


def _notify(text: str) -> None:
    typer.echo(text, err=True)


@app.command(rich_help_panel=_PANEL)
def promote(
    run: RunAndVersion,
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="The registered model; made if it is new.")],
    gate: Annotated[str, typer.Option(help="superior, or not-inferior by --margin.")] = "superior",
    margin: Annotated[float, typer.Option(help="By how much it may be worse (not-inferior), in reward units.")] = 0.0,
    episodes: Annotated[int, typer.Option(help="Episodes that challenger and champion play, on the same seeds.")] = 100,
    level: Annotated[float, typer.Option(help="Coverage of the confidence intervals.")] = 0.95,
    floor: Annotated[
        float | None,
        typer.Option(help="Return that the lower end of its interval must reach.", show_default=False),
    ] = None,
    reproduced: Annotated[
        bool, typer.Option("--require-reproduced", help="Refuse a run without a certificate of `rltrack reproduce`.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a run's policy a model's champion, if it is better.

    Exit code 4 if it is not better than the champion.

    \b
    rltrack promote cartpole-ppo --model cartpole --floor 400
    rltrack promote cartpole-ppo@last --model cartpole --gate not-inferior --margin 5
    """
    from rltrack.registry.gate import Gate
    from rltrack.registry.promotion import promote as decide
    from rltrack.runs import RunRef
    from rltrack.tracking.shipper import prepare_process

    kind = {"superior": "superior", "not-inferior": "not_inferior", "not_inferior": "not_inferior"}.get(gate)
    if kind is None:
        raise ConfigurationError(f"The gate is {gate!r}. Allowed: superior, not-inferior.")
    wanted = Gate(kind, margin, episodes, level, floor)  # type: ignore[arg-type]  # its own check
    ref = RunRef.parse(run)
    found = the_root().find(ref.run)
    if reproduced:
        from rltrack.inspection.reproducing import require_reproduced

        require_reproduced(found, found.store().find(ref.version or "best"))
    prepare_process()
    decision = decide(found, model, version=ref.version or "best", gate=wanted, notify=_notify)
    if as_json:
        print_json(dataclasses.asdict(decision))
    else:
        typer.echo(
            f"{decision.source} {'is champion' if decision.promoted else 'was not promoted'}: version {decision.version} of "
            f"'{model}'\n{decision.reason}"
            + ("\n(decided before; nothing was played again)" if decision.was_known else "")
        )
    if not decision.promoted:
        raise typer.Exit(EXIT_NOT_PROMOTED)


@app.command(rich_help_panel=_PANEL)
def models(as_json: AsJson = False) -> None:
    """List the registered models.

    Champion, challenger, and what was decided, with reasons.
    """
    from rltrack.registry.model_registry import ModelRegistry
    from rltrack.registry.overview import model_rows
    from rltrack.tracking.shipper import prepare_process

    prepare_process()
    registry = ModelRegistry(the_root())
    rows = model_rows(registry)
    if as_json:
        print_json(rows)
    else:
        from rltrack.console.models import print_models

        print_models(rows, registry.uri)


@app.command(rich_help_panel=_PANEL)
def rollback(
    model: ModelName,
    to: Annotated[
        int | None, typer.Option(metavar="VERSION", help="Default: the previous champion.", show_default=False)
    ] = None,
) -> None:
    """Make an earlier version champion again.

    \b
    rltrack rollback cartpole
    rltrack rollback cartpole --to 3
    """
    from rltrack.registry.champions import rollback as go_back
    from rltrack.tracking.shipper import prepare_process

    prepare_process()
    event = go_back(the_root(), model, to, notify=_notify)
    typer.echo(f"Version {event.version} ({event.source}) is champion of '{model}' again.")


@app.command("prune-models", rich_help_panel=_PANEL)
def prune_models(
    model: ModelName,
    keep: Annotated[int, typer.Option(min=1, help="Number of newest champions, and of newest versions, to keep.")] = 5,
) -> None:
    """Delete old versions of a model.

    Versions with an alias are kept.
    """
    from rltrack.registry.champions import prune_models as prune
    from rltrack.tracking.shipper import prepare_process

    prepare_process()
    deleted = prune(the_root(), model, keep, notify=_notify)
    typer.echo(f"Deleted versions: {', '.join(map(str, deleted))}." if deleted else "Nothing to delete.")


@app.command(rich_help_panel=_PANEL)
def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@ALIAS]",
            help="A registered model (`rltrack models` lists them); its champion, or another alias.",
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on. For others than 127.0.0.1, set RLTRACK_SERVE_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port there.")] = 5001,
    pin: Annotated[
        int | None,
        typer.Option(metavar="VERSION", help="Serve this version, whatever becomes champion.", show_default=False),
    ] = None,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes in a request.")] = 10_000_000,
    max_batch: Annotated[int, typer.Option(min=1, help="Observations in a request.")] = 1024,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for a request.")] = 10.0,
) -> None:
    """Serve a model's champion over HTTP until Ctrl-C.

    With the addresses of MLflow's scoring server. A new champion is served within seconds.

    With RLTRACK_SERVE_TOKEN set, requests need it as a bearer token.

    \b
    rltrack serve cartpole
    curl -s 127.0.0.1:5001/invocations -H 'Content-Type: application/json' -d '{"inputs": [[0, 0, 0, 0]]}'
    """
    from rltrack.registry.model_registry import ModelRegistry
    from rltrack.registry.registered import CHAMPION
    from rltrack.serving.application import Limits
    from rltrack.serving.server import serve as begin
    from rltrack.tracking.shipper import prepare_process

    prepare_process()
    name, _, alias = model.partition("@")
    begin(
        ModelRegistry(the_root()),
        name,
        alias=alias or CHAMPION,
        pin=pin,
        host=host,
        port=port,
        limits=Limits(max_body, max_batch, timeout),
        notify=_notify,
    )


@app.command("evaluate-champion", rich_help_panel=_PANEL)
def evaluate_champion(
    model: ModelName,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play, on fresh seeds.")] = 100,
    false_alarm_rate: Annotated[
        float, typer.Option(help="Probability of an alarm about an unchanged champion.")
    ] = 0.01,
    as_json: AsJson = False,
) -> None:
    """Test whether a model's champion got worse.

    Plays it on fresh seeds. Exit code 1 if it got worse since its promotion.
    """
    from rltrack.registry.champions import evaluate_champion as watch
    from rltrack.tracking.shipper import prepare_process

    prepare_process()
    found = watch(the_root(), model, episodes=episodes, false_alarm_rate=false_alarm_rate, notify=_notify)
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        verdict = "degraded" if found.degraded else "as it was"
        typer.echo(f"The champion of '{model}', version {found.version}, is {verdict}: {found.reason}.")
    if found.degraded:
        raise typer.Exit(EXIT_ERROR)


@app.command(rich_help_panel=_PANEL)
def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Two runs or more (`rltrack runs` lists them); seeds of one training are a group."
        ),
    ],
    threshold: Annotated[
        float | None,
        typer.Option(
            callback=finite,
            help="Return that counts as reached; default: what the environment counts as solved.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for page, pictures and data.")] = Path("comparison"),
    log: Annotated[bool, typer.Option(help="Log them to MLflow, too.")] = True,
    as_json: AsJson = False,
) -> None:
    """Compare runs: scores, curves, what differs.

    Scores with intervals and curves with bands; as a table, pictures and one HTML page.

    \b
    rltrack compare cartpole-ppo cartpole-a2c
    rltrack compare ppo-s0 ppo-s1 ppo-s2 a2c-s0 a2c-s1 a2c-s2 --threshold 475
    """
    from rltrack.comparison.study import compare_runs

    root = the_root()
    found = [root.find(name) for name in names]
    with working(f"comparing {len(found)} runs"):
        study = compare_runs(found, threshold)
    if as_json:
        print_json(study.to_record())
        return
    from rltrack.comparison.page import write_comparison
    from rltrack.console.studies import print_comparison
    from rltrack.registry.comparisons import compare_link, log_comparison
    from rltrack.tracking.shipper import prepare_process

    prepare_process()
    link = compare_link(found)
    with working("drawing"):
        files = write_comparison(study, output, link)
    print_comparison(study)
    typer.echo(f"\npage          {files[0]}")
    if link:
        typer.echo(f"in MLflow     {link}")
    if log:
        try:
            with working("logging to MLflow"):
                log_comparison(
                    found, files, f"Comparison of {', '.join(run.name for run in found)}: see comparison.html."
                )
        except RegistryUnavailable as error:
            typer.echo(f"Not logged to MLflow: {error}", err=True)
