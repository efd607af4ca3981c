"""Commands for the stack of servers."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rltrack.cli.shared import EXIT_ERROR, AsJson, app, print_json, the_root
from rltrack.errors import ConfigurationError

if TYPE_CHECKING:
    from rltrack.flows.installation import Step
    from rltrack.runs import Root


@app.command(rich_help_panel="Servers")
def up(
    workers: Annotated[int, typer.Option(min=0, help="Number of workers, which run the deployments.")] = 1,
    with_worker: Annotated[bool, typer.Option("--with-worker", help="The same as --workers 1.")] = False,
    database_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="RLTRACK_DATABASE_URL",
            show_default=False,
            help="postgresql://user@host/name for both servers' databases; default: sqlite under the root.",
        ),
    ] = None,
    prefect_port: Annotated[
        int | None, typer.Option(help="Of Prefect's page; default 4200.", show_default=False)
    ] = None,
    mlflow_port: Annotated[
        int | None, typer.Option("--mlflow-port", "--port", help="Of MLflow's page; default 5000.", show_default=False)
    ] = None,
    tensorboard_port: Annotated[
        int | None, typer.Option(help="Of TensorBoard; default 6006.", show_default=False)
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay until SIGTERM or Ctrl-C, as for systemd.")
    ] = False,
) -> None:
    """Start the servers on this machine, until `down`.

    Prefect, MLflow, TensorBoard, workers, deployments.

    \b
    rltrack up
    prefect deployment run train/train
    rltrack down
    """
    from rltrack.flows import stack
    from rltrack.tracking.sinks.mlflow_view import page_of_runs

    chosen = {"prefect": prefect_port, "mlflow": mlflow_port, "tensorboard": tensorboard_port}
    ports = {name: stack.PORTS[name] if port is None else port for name, port in chosen.items()}
    options = stack.Options(max(workers, int(with_worker)), database_url, ports)
    root = the_root()
    asked_for = frozenset(name for name, port in chosen.items() if port is not None)
    stack.up(root, options, lambda text: typer.echo(text, err=True), chosen_ports=asked_for, foreground=foreground)
    if not foreground:
        rows = _print_stack(root, as_json=False)
        mlflow = next((row["address"] for row in rows if row["part"] == "mlflow" and row["healthy"]), None)
        if mlflow and (page := page_of_runs(mlflow)):
            typer.echo(f"\nMLflow's runs with their returns: {page}")
        auth = stack.auth_file(root)
        typer.echo(
            f"\nPrefect's page asks for the text in {auth}, which only you can read. For the `prefect` command:\n"
            f"export PREFECT_API_URL={stack.api_address(root)} PREFECT_API_AUTH_STRING=$(cat {shlex.quote(str(auth))})"
        )


@app.command(rich_help_panel="Servers")
def down() -> None:
    """End the servers that `up` started.

    Running flows are suspended at a boundary, with a version, and resume after the next `up`.
    """
    from rltrack.flows import stack

    root = the_root()
    was_up = stack.down(root, lambda text: typer.echo(text, err=True))
    typer.echo("The stack is down." if was_up else f"There is no stack under {root.path}.")


@app.command(rich_help_panel="Servers")
def status(as_json: AsJson = False) -> None:
    """Show health and addresses of the servers.

    Exit code 1 if one is not.
    """
    if not all(row["healthy"] for row in _print_stack(the_root(), as_json)):
        raise typer.Exit(EXIT_ERROR)


DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and change nothing.")]
InstallationName = Annotated[
    str | None,
    typer.Option(
        "--name",
        help="Name of this root's deployments on a server where rltrack's own names are taken: train/train-NAME, work pool "
        "rltrack-NAME. It is stored in the root.",
        show_default=False,
    ),
]


@app.command(rich_help_panel="Servers")
def deploy(
    file: Annotated[
        Path | None,
        typer.Option(help="Prefect's file with your deployments; default: rltrack's own.", show_default=False),
    ] = None,
    name: InstallationName = None,
    pool: Annotated[
        str | None,
        typer.Option(
            help="An existing work pool to use as it is; default: one of this root's own.", show_default=False
        ),
    ] = None,
    notify: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BLOCK",
            help="Send messages about promotions, refusals, degraded champions, failed and interrupted runs through this block of "
            "Prefect, such as slack-webhook/team. Can be repeated.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace changed parameters, schedules and limits by those of the file."),
    ] = False,
    adopt: Annotated[
        bool,
        typer.Option(
            "--adopt", help="Take over deployments of an rltrack before 0.1, which have no tag of their root."
        ),
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make deployments, work pool and automations in Prefect.

    On the server at PREFECT_API_URL, or that of the stack on this machine.

    Changes on the server (parameters, schedules, limits) are kept, and the differences are shown. Only what this root deployed
    is changed.

    \b
    rltrack deploy --dry-run
    rltrack deploy --file my_deployments/prefect.yaml
    """
    from rltrack.flows import client

    if file is not None and not file.is_file():
        raise ConfigurationError(
            f"No file of deployments at {file}. examples/scheduled_retraining/prefect.yaml is one."
        )
    root = the_root()
    with client.existing_server(root.path):
        from rltrack.flows import deployments
        from rltrack.flows.installation import installation_of

        steps = deployments.deploy(
            root,
            installation_of(root, name),
            file,
            pool=pool,
            notify=notify or (),
            overwrite=overwrite,
            adopt=adopt,
            dry_run=dry_run,
        )
    _print_steps(steps, dry_run, as_json)


@app.command(rich_help_panel="Servers")
def undeploy(dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Remove from Prefect exactly what this root deployed.

    Automations, deployments, work pool. Flow runs stay.

    \b
    rltrack undeploy --dry-run
    """
    from rltrack.flows import client

    root = the_root()
    with client.existing_server(root.path):
        from rltrack.flows import deployments
        from rltrack.flows.installation import installation_of

        steps = deployments.undeploy(root, installation_of(root), dry_run=dry_run)
    _print_steps(steps, dry_run, as_json)
    if not steps and not as_json:
        typer.echo("This root deployed nothing there.")


def _print_steps(steps: list[Step], dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json([dataclasses.asdict(step) for step in steps])
        return
    from rltrack.console.stack import print_steps

    print_steps(steps)
    if dry_run:
        typer.echo("Nothing was changed.")
    elif any(step.action == "keep" and step.details for step in steps):
        typer.echo("Changes on the server were kept; `rltrack deploy --overwrite` applies the file.")


def _print_stack(root: Root, as_json: bool) -> list[dict[str, Any]]:
    from rltrack.console.stack import print_stack
    from rltrack.flows import stack

    rows = stack.status(root)
    print_json(rows) if as_json else print_stack(rows)
    if not as_json and not any(row["healthy"] for row in rows):
        typer.echo(f"No server runs for {root.path}. Start them: rltrack up")
    return rows
