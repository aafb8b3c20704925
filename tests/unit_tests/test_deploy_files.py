"""The files of examples/deploy say what the programs that read them understand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer.main
import yaml

from langchain_rwkv_state.cli import app
from langchain_rwkv_state.ray import RayArguments
from langchain_rwkv_state.serve.metrics import Metrics
from langchain_rwkv_state.store.urls import StoreUrl

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "examples" / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))


def parsed(words):
    """Returns what the command line makes of words, as values; nothing is run."""
    name, *rest = words
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    return command.make_context(name, rest).params


def test_the_image_serves_off_loopback_with_keys_and_a_store_of_its_own():
    file = (DEPLOY / "Dockerfile").read_text("utf-8").replace("\\\n", "")
    assert json.loads(re.findall(r"^ENTRYPOINT (.*)$", file, re.M)[0]) == ["rwkv-state"]
    given = parsed(json.loads(re.findall(r"^CMD (.*)$", file, re.M)[0]))
    assert (given["host"], given["port"]) == ("0.0.0.0", 8000)
    assert given["api_key_file"] == Path("/run/secrets/api_keys")
    assert f"VOLUME {given['store']}" in file
    extras = re.search(r'"/src\[(.*)\]"', file)
    assert extras
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    assert set(extras[1].split(",")) <= set(known)


def test_the_servers_of_compose_share_a_redis_whose_password_no_command_line_shows():
    server = COMPOSE["services"]["server"]
    given = parsed(server["command"])
    url = StoreUrl.read(given["store"])
    assert url.is_redis
    assert url.shown == given["store"]
    assert "RWKV_STATE_PASSWORD" in server["environment"]
    assert given["api_key_file"] == Path("/run/secrets/api_keys")
    assert float(server["stop_grace_period"].rstrip("s")) > given["drain"]


def test_redis_and_the_servers_are_closed_to_the_outside():
    services = COMPOSE["services"]
    assert [name for name, each in services.items() if "ports" in each] == ["proxy"]
    assert services["redis"]["networks"] == ["inner"]
    assert COMPOSE["networks"]["inner"] == {"internal": True}


def test_the_file_of_ray_has_arguments_that_the_application_knows():
    file = yaml.safe_load((DEPLOY / "ray.yaml").read_text("utf-8"))
    assert file["http_options"]["host"] == "127.0.0.1"
    (served,) = file["applications"]
    module, _, name = served["import_path"].partition(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
    assert RayArguments.read(served["args"]).max_replicas == 8


def test_the_page_names_arguments_of_ray_with_their_defaults():
    page = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*)(?:, …)? \| ([^|]+) \| [^|]+ \|$", page, re.M)
    named = {name: default for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    for name in RayArguments.model_fields.keys() & named.keys():
        default = RayArguments.model_fields[name].default
        if isinstance(default, (int, float)) and "as of" not in named[name]:
            assert f"{default:g}" in named[name] or str(default).lower() in named[name], name
    of_ray = set(
        list(RayArguments.model_fields)[list(RayArguments.model_fields).index("min_replicas") :]
    )
    assert of_ray <= named.keys()
    assert named.keys() - RayArguments.model_fields.keys() <= {"names"} | _others(named)


def _others(named):
    """Names of metrics stand in another table of the page."""
    return {name for name in named if name.startswith(("rwkv_state_", "ray_serve_"))}


def test_the_page_names_metrics_that_there_are():
    page = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    shown = Metrics().text().decode()
    there = set(re.findall(r"^# TYPE (\w+) ", shown, re.M))
    named = set(re.findall(r"`(rwkv_state_\w+)`", page))
    assert len(named) > 8
    assert named <= there


def test_the_page_names_options_of_the_server_that_there_are():
    page = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    lines = re.findall(r"^(?:\w+=\S+ )?rwkv-state (serve .*)$", page, re.M)
    assert len(lines) == 2
    for line in lines:
        assert parsed(line.split())["model"] == "/models/rwkv-7.pth"


def test_every_file_is_named_on_the_page():
    page = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    for file in DEPLOY.iterdir():
        assert f"`{file.name}`" in page or f"examples/deploy/{file.name}" in page, file.name


@pytest.mark.parametrize("name", ["compose.yaml", "ray.yaml"])
def test_no_file_holds_a_password(name):
    text = (DEPLOY / name).read_text("utf-8")
    for found in re.findall(r"redis://[^/\s]*@", text):
        assert found == "redis://:***@"
