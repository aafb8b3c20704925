"""Three replicas over one store: any takes any turn, and one that dies loses nothing."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from langchain_rwkv_state.ray import app
from tests.helpers import ray_cluster
from tests.helpers.ray_campaign import campaign
from tests.helpers.redis_server import redis_server

pytestmark = pytest.mark.skipif(ray_cluster.MISSING is not None, reason=str(ray_cluster.MISSING))
_REPLICAS = 3
_BACK_SECONDS = 20  # with the cores to itself
_PATIENCE_SECONDS = 90  # on a machine that does other things, too
_MINUTES = float(os.environ.get("RWKV_STATE_RAY_MINUTES", "3"))


def ask(cluster, **body):
    """Returns a response, and which replica gave it."""
    request = urllib.request.Request(
        f"{cluster.url}/v1/responses",
        json.dumps({"model": "demo", "temperature": 0, **body}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer), answer.headers["x-served-by"]


def text_of(response):
    return response["output"][0]["content"][0]["text"]


@pytest.mark.slow
def test_a_conversation_goes_on_over_replicas_and_over_the_death_of_one(tmp_path):
    arguments = [
        f"store={tmp_path / 'store'}",
        f"min_replicas={_REPLICAS}",
        f"max_replicas={_REPLICAS}",
        "num_cpus=0",
    ]
    with ray_cluster.serving("model=demo", *arguments) as cluster:
        first, by = ask(cluster, input="My name is Bob.")
        seen, ids = {by}, [first["id"]]

        def go_on():
            response, served_by = ask(
                cluster, input="What is my name?", previous_response_id=ids[-1]
            )
            assert text_of(response) == "Your name is Bob."
            ids.append(response["id"])
            return served_by

        while len(seen) < _REPLICAS and len(ids) < 60:
            seen.add(go_on())
        assert len(seen) == _REPLICAS, "the turns went to different replicas"

        before = cluster.replicas()
        killed = next(iter(before))
        before[killed].kill()
        at = time.monotonic()
        while len(cluster.replicas().keys() - {killed}) < _REPLICAS:
            go_on()
            assert time.monotonic() - at < _PATIENCE_SECONDS, "a replica was not replaced"
        new: set[str] = set()
        while len(new) < _REPLICAS:
            new.add(go_on())
            assert time.monotonic() - at < _PATIENCE_SECONDS, "the new replica serves nobody"
        assert new != seen

        # Each turn stands where it was: any of them can be gone on from, by whoever takes it.
        for turn in (0, len(ids) // 2, -1):
            response, _ = ask(cluster, input="What is my name?", previous_response_id=ids[turn])
            assert text_of(response) == "Your name is Bob."


@pytest.mark.thorough
def test_no_acknowledged_turn_is_lost_while_replicas_are_killed_under_load():
    arguments = [f"min_replicas={_REPLICAS}", f"max_replicas={_REPLICAS}", "num_cpus=0"]
    with (
        redis_server() as redis,
        ray_cluster.serving("model=demo", f"store={redis.url}", *arguments) as cluster,
    ):
        found = campaign(cluster, redis.url, minutes=_MINUTES, replicas=_REPLICAS)
    assert found.kills >= _MINUTES
    assert found.acknowledged > 100 * _MINUTES
    assert (found.lost, found.twice) == ([], [])
    assert sum(found.unanswered.values()) < found.acknowledged / 50
    assert max(found.back_seconds) < _BACK_SECONDS, found


@pytest.mark.filterwarnings("ignore")  # of Ray, as it is imported
def test_ray_understands_the_file_of_the_examples():
    from ray.serve import Application
    from ray.serve.schema import ServeDeploySchema

    file = Path(__file__).parents[2] / "examples" / "deploy" / "ray.yaml"
    read = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text("utf-8")))
    assert read.applications[0].args["max_replicas"] == 8
    assert read.http_options.host == "127.0.0.1"
    assert isinstance(app(read.applications[0].args), Application)
    assert isinstance(app({"store": "redis://redis:6379/0", "affinity": "true"}), Application)
