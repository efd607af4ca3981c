"""A prepared view of an experiment's runs on MLflow's page: the return and what runs are compared by as columns, learning curves.

MLflow's page keeps a view that a person shares as a tag of the experiment, and opens it by a parameter of the page's address. The
tag is written once, when an experiment is made, under a name of ours, and never changed: views of people are not touched. The
format is that of the pages of MLflow 3.16 and 3.17; a test compares its fields with those of the installed page. A page that does
not know a view shows its usual columns.
"""

from __future__ import annotations

import base64
import json
import urllib.request
import zlib

VIEW = "rltrack"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"

_COLUMNS = [
    "metrics.`eval/mean_reward`",
    "metrics.`rollout/ep_rew_mean`",
    "params.`algorithm`",
    "params.`environment`",
    "params.`seed`",
    "tags.`rltrack.env_steps`",
    "tags.`rltrack.state`",
]
_RUNS = {
    "searchFilter": "",
    "orderByKey": "attributes.start_time",
    "orderByAsc": False,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "modelVersionFilter": "All Runs",
    "datasetsFilter": [],
}
PAGE = {
    "selectedColumns": _COLUMNS,
    "columnOrder": [],
    "columnWidths": {},
    "runsExpanded": {},
    "runsPinned": [],
    "runsHidden": [],
    "runsVisibilityMap": {},
    "runsHiddenMode": "FIRST_10_RUNS",
    "viewMaximized": False,
    "runListHidden": False,
    "isAccordionReordered": False,
    "groupBy": None,
    "groupsExpanded": {},
    "autoRefreshEnabled": True,
    "useGroupedValuesInCharts": True,
    "hideEmptyCharts": True,
    "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    "chartsSearchFilter": "^(eval|rollout)/",
}
"""The state of the page, complete, since the page replaces its own by it; its charts are those that it makes by itself."""


def view_tags() -> dict[str, str]:
    """Return the tags of a new experiment."""
    state = json.dumps({**_RUNS, **PAGE}).encode()
    return {VIEW_TAG: "deflate;" + base64.b64encode(zlib.compress(state)).decode()}


def page_of_runs(address: str) -> str | None:
    """Return the address of the view of the newest experiment that has one; None without any, or if the server does not answer.

    Args:
        address: Of MLflow's server, without an account.
    """
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/search",
        json.dumps({"max_results": 1000, "order_by": ["creation_time DESC"]}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            found = json.load(answer).get("experiments", [])
    except (OSError, ValueError):
        return None
    ours = (item for item in found if any(tag["key"] == VIEW_TAG for tag in item.get("tags", [])))
    newest = next(ours, None)
    return newest and f"{address}/#/experiments/{newest['experiment_id']}/runs?viewStateShareKey={VIEW}"
