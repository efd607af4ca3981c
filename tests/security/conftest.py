"""The flows' Prefect server, for attacks through it."""

from tests.flows.conftest import client, prefect_api, quick_retries  # noqa: F401
