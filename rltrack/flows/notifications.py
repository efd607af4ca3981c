"""Prefect automations that notify people of promotions, refusals, degraded champions, and runs that failed or were interrupted.

How a message is sent is Prefect's: a block on its server, for Slack, mail, a webhook and others.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import BlockDocument
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.actions import CallWebhook, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from rltrack.errors import ConfigurationError
from rltrack.flows.deployed import every

CHAMPION_EVENTS = ("rltrack.champion.promoted", "rltrack.champion.refused", "rltrack.champion.degraded")
RUN_EVENTS = ("prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.Preempted")

_CHAMPION_TEXT = (
    "{{ event.event }}: model {{ event.payload.model }}, version {{ event.payload.version }} ({{ event.payload.run }}). "
    "{{ event.payload.reason }}"
)
_RUN_TEXT = "{{ event.event }}: {{ deployment.name }}, flow run {{ flow_run.name }}. {{ flow_run.state.message }}"
_WEBHOOK = "webhook"


def notifications(
    client: SyncPrefectClient, blocks: Sequence[str], deployments: Sequence[DeploymentResponse]
) -> list[AutomationCore]:
    """Return the automations that send messages about these deployments through blocks.

    Args:
        client: Of the server.
        blocks: ``TYPE/NAME`` of each block, such as ``slack-webhook/team``.
        deployments: The deployments whose flow runs are reported.

    Raises:
        ConfigurationError: If there is no such block, or it cannot send.
    """
    found = [(name, _block(client, name)) for name in blocks]
    if found and not deployments:
        raise ConfigurationError("--notify: nothing is deployed that could send messages.")
    related = {
        "prefect.resource.id": sorted(f"prefect.deployment.{item.id}" for item in deployments),
        "prefect.resource.role": "deployment",
    }
    return [
        _automation(name, what, events, resource, related, _action(block, text))
        for name, block in found
        for what, events, resource, text in (
            ("champions", CHAMPION_EVENTS, "rltrack.model.*", _CHAMPION_TEXT),
            ("interrupted runs", RUN_EVENTS, "prefect.flow-run.*", _RUN_TEXT),
        )
    ]


def _automation(
    block: str, what: str, events: Sequence[str], resource: str, related: dict[str, Any], action: Any
) -> AutomationCore:
    return AutomationCore(
        name=f"rltrack: notify {block} of {what}",
        description=f"Sends a message for {', '.join(events)}.",
        trigger=EventTrigger(
            expect=set(events),
            match={"prefect.resource.id": resource},
            match_related=related,
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(seconds=0),
        ),
        actions=[action],
    )


def _action(block: BlockDocument, text: str) -> Any:
    if block.block_type is not None and block.block_type.slug == _WEBHOOK:
        return CallWebhook(block_document_id=block.id, payload=text)
    return SendNotification(block_document_id=block.id, subject="rltrack: {{ event.event }}", body=text)


def _block(client: SyncPrefectClient, name: str) -> BlockDocument:
    kind, slash, own = name.partition("/")
    if not slash or not kind or not own:
        raise ConfigurationError(f"--notify {name}: give TYPE/NAME of a block, such as slack-webhook/team.")
    try:
        block = client.read_block_document_by_name(own, kind, include_secrets=False)
    except ObjectNotFound:
        known = sorted(
            f"{item.block_type.slug}/{item.name}"
            for item in every(client.read_block_documents)
            if item.block_type is not None and item.name is not None
        )
        raise ConfigurationError(
            f"--notify {name}: the Prefect server has no such block. It has: {', '.join(known) or 'none'}. Make one on its page "
            "Blocks, or with Block.save()."
        ) from None
    capabilities = [] if block.block_schema is None else block.block_schema.capabilities
    if kind != _WEBHOOK and "notify" not in capabilities:
        raise ConfigurationError(
            f"--notify {name}: this block sends no messages. Take one for Slack, mail or a webhook."
        )
    return block
