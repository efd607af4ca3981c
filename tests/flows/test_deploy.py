"""What an installation deploys: only its own is touched, what people changed stays, and two teams do not hear each other."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from rltrack.errors import ConfigurationError, RltrackError
from rltrack.runs import Root

pytestmark = pytest.mark.slow

FILE = """
name: tests
pull: []
deployments:
  - name: {name}
    entrypoint: rltrack.flows.retrain.retrain
    tags: [rltrack]
    work_pool: {{name: rltrack}}
    parameters: {{config: null, model: walker, warm_start: true}}
    concurrency_limit: {{limit: 1, collision_strategy: CANCEL_NEW}}
    schedules:
      - {{slug: nightly, cron: "0 3 * * *", timezone: UTC, active: false}}
"""


class Team:
    """A root, its installation and a file with one deployment."""

    def __init__(self, folder: Path, name: str, deployment: str | None = None) -> None:
        from rltrack.flows.installation import installation_of

        self.root = Root(folder / name / "mlruns")
        self.installation = installation_of(self.root, name)
        self.deployment = f"retrain/{deployment or name}"
        self.file = folder / name / "prefect.yaml"
        self.file.write_text(FILE.format(name=deployment or name))

    def deploy(self, **options):
        from rltrack.flows.deployments import deploy

        log = self.file.with_suffix(".log")
        return actions(deploy(self.root, self.installation, self.file, log=log, **options))

    def undeploy(self):
        from rltrack.flows.deployments import undeploy

        return actions(undeploy(self.root, self.installation))


def actions(steps) -> dict[str, str]:
    return {f"{step.what} {step.name}": " ".join([step.action, *step.details]) for step in steps}


@pytest.fixture(scope="module")
def team(prefect_api, tmp_path_factory):
    """Makes teams whose names nobody else on the tests' server has; takes away what they deployed."""
    made: list[Team] = []

    def make(**options) -> Team:
        made.append(Team(tmp_path_factory.mktemp("team"), f"team-{uuid.uuid4().hex[:8]}", **options))
        return made[-1]

    yield make
    for item in made:
        item.undeploy()


@pytest.fixture(scope="module")
def ours(team):
    """A team that has deployed; tests leave it as they found it."""
    made = team()
    made.deploy()
    return made


def test_what_people_changed_on_the_server_stays(client, team):
    from prefect.client.schemas.actions import DeploymentUpdate
    from prefect.exceptions import ObjectNotFound

    ours = team()
    name, pool = ours.deployment, ours.installation.work_pool
    bring_back = f"rltrack: bring interrupted runs back (retrain) [{ours.installation.name}]"
    silent = f"rltrack: mark silent runs as crashed [{ours.installation.name}]"
    assert set(ours.deploy(dry_run=True).values()) == {"create"}
    with pytest.raises(ObjectNotFound):
        client.read_deployment_by_name(name)
    first = ours.deploy()
    assert first == {f"work pool {pool}": "create", f"deployment {name}": "create",
                     f"automation {bring_back}": "create", f"automation {silent}": "create"}  # fmt: skip
    assert set(ours.deploy().values()) == {"keep"}

    before = client.read_deployment_by_name(name)
    client.update_deployment(before.id, DeploymentUpdate(parameters={"model": "runner", "warm_start": True}))
    client.update_deployment_schedule(before.id, before.schedules[0].id, active=True)
    [automation] = client.read_automations_by_name(silent)
    client.delete_automation(automation.id)
    [automation] = client.read_automations_by_name(bring_back)
    client.pause_automation(automation.id)

    again = ours.deploy()
    assert again[f"deployment {name}"].startswith("keep")
    assert "parameters.model: walker → runner" in again[f"deployment {name}"]
    assert "schedules.nightly.active: False → True" in again[f"deployment {name}"]
    assert again[f"automation {silent}"] == "keep it was deleted on the server"
    now = client.read_deployment_by_name(name)
    assert (now.parameters["model"], now.schedules[0].active) == ("runner", True)
    assert client.read_automations_by_name(silent) == []
    assert not client.read_automations_by_name(bring_back)[0].enabled

    asked = ours.deploy(overwrite=True)
    assert asked[f"deployment {name}"].startswith("update")
    assert asked[f"automation {silent}"] == "create"
    now = client.read_deployment_by_name(name)
    assert (now.id, now.parameters["model"], now.schedules[0].active) == (before.id, "walker", False)


def test_what_follows_from_the_code_is_updated_and_nothing_else(client, ours):
    from prefect.client.schemas.actions import DeploymentUpdate

    before = client.read_deployment_by_name(ours.deployment)
    stale = DeploymentUpdate(parameter_openapi_schema={"type": "object", "properties": {}}, parameters={"model": "x"})
    client.update_deployment(before.id, stale)
    assert ours.deploy()[f"deployment {ours.deployment}"].startswith("update")
    now = client.read_deployment_by_name(ours.deployment)
    assert now.parameter_openapi_schema == before.parameter_openapi_schema
    assert now.parameters == {"model": "x"}
    client.update_deployment(before.id, DeploymentUpdate(parameters=before.parameters))


def test_two_teams_hear_only_their_own_and_take_nothing_from_each_other(client, team, ours):
    one, other = team(), ours
    one.deploy()
    for mine, theirs in ((one, other), (other, one)):
        found = [item for item in client.read_automations() if mine.installation.owns(item.tags)]
        own = f"prefect.deployment.{client.read_deployment_by_name(mine.deployment).id}"
        foreign = str(client.read_deployment_by_name(theirs.deployment).id)
        assert len(found) == 2
        for automation in found:
            related = automation.trigger.match_related
            heard = related.root if hasattr(related, "root") else related
            assert heard == {"prefect.resource.id": [own], "prefect.resource.role": "deployment"}
            assert foreign not in automation.model_dump_json()
    removed = one.undeploy()
    assert set(removed.values()) == {"remove"}
    assert len(removed) == 4
    assert client.read_deployment_by_name(other.deployment).work_pool_name == other.installation.work_pool
    assert set(other.deploy().values()) == {"keep"}
    assert one.undeploy() == {}


def test_what_others_made_is_refused_before_anything_is_changed(client, team, ours):
    one = ours
    other = team(deployment=one.deployment.partition("/")[2])
    with pytest.raises(ConfigurationError, match=r"another installation.*--name"):
        other.deploy()
    with pytest.raises(ConfigurationError, match="another installation"):
        other.deploy(overwrite=True, adopt=True)
    assert not [pool for pool in client.read_work_pools() if pool.name == other.installation.work_pool]
    assert client.read_deployment_by_name(one.deployment).work_pool_name == one.installation.work_pool
    assert other.undeploy() == {}


def test_what_an_earlier_rltrack_made_is_taken_over_only_if_asked(client, ours):
    from prefect.client.schemas.actions import DeploymentUpdate

    found = client.read_deployment_by_name(ours.deployment)
    client.update_deployment(found.id, DeploymentUpdate(tags=["rltrack"]))
    with pytest.raises(ConfigurationError, match=r"earlier rltrack.*--adopt"):
        ours.deploy()
    assert ours.deploy(adopt=True)[f"deployment {ours.deployment}"].startswith("update")
    assert ours.installation.owns(client.read_deployment_by_name(ours.deployment).tags)


def test_a_run_cannot_bring_a_command(client, ours):
    deployment = client.read_deployment_by_name(ours.deployment)
    made = client.read_work_pool(ours.installation.work_pool).base_job_template
    for variable, value in {"command": "touch owned", "env": {"PYTHONPATH": "/evil"}, "working_dir": "/"}.items():
        with pytest.raises(Exception, match=variable):
            client.create_flow_run_from_deployment(deployment.id, job_variables={variable: value})
        assert variable not in made["job_configuration"]


def test_a_template_that_was_opened_on_the_server_is_reported_and_closed_only_if_asked(client, ours):
    from prefect.client.schemas.actions import WorkPoolUpdate
    from prefect.workers.process import ProcessWorker

    pool = ours.installation.work_pool
    client.update_work_pool(pool, WorkPoolUpdate(base_job_template=ProcessWorker.get_default_base_job_template()))
    assert "command" in ours.deploy()[f"work pool {pool}"]
    assert "command" in client.read_work_pool(pool).base_job_template["variables"]["properties"]
    ours.deploy(overwrite=True)
    assert "command" not in client.read_work_pool(pool).base_job_template["variables"]["properties"]


def test_seeds_are_distinguished_from_a_strangers_flow_runs_of_the_same_name(client, ours):
    """A stranger's live flow run of a seed's name does not count as that seed's."""
    from prefect import flow as prefect_flow
    from prefect.states import Running

    from rltrack.flows import spread

    @prefect_flow(name="payroll")
    def payroll():
        pass

    client.create_flow_run(payroll, name=f"seed-{ours.installation.name}", state=Running())
    said: list[str] = []
    runs = {f"seed-{ours.installation.name}": {"model": "x"}}
    spread._spread(ours.deployment, runs, False, said.append)
    assert said == [f"1 started as runs of {ours.deployment}"]


def test_the_servers_password(prefect_api, own_root):
    """Nobody without the root's file reaches the API; and a server that asks for one is told from one that is away."""
    import os
    import stat

    from rltrack.flows.server import ServerFolder, refuses

    [folder] = [ServerFolder(path) for path in _roots_of_server(prefect_api)]
    assert stat.S_IMODE(folder.auth_file.stat().st_mode) == 0o600
    assert refuses(prefect_api, None)
    assert refuses(prefect_api, "rltrack:wrong")
    assert not refuses(prefect_api, folder.auth())
    assert os.environ["PREFECT_API_AUTH_STRING"] == folder.auth()

    from rltrack.flows.client import prefect_server

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", prefect_api)
        from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

        with (
            temporary_settings({PREFECT_API_AUTH_STRING: "rltrack:wrong"}),
            pytest.raises(RltrackError, match="asks for a password"),
            prefect_server(own_root),
        ):
            pass


def _roots_of_server(api: str):
    """The root whose server the tests share."""
    import json

    import psutil

    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "rltrack.flows.server" in words:
            root = Path(words[words.index("rltrack.flows.server") + 1])
            try:
                if json.loads((root / "prefect" / "server.json").read_text())["api"] == api:
                    yield root
            except OSError:
                continue
