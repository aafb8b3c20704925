"""Serves a model on many machines by Ray Serve: replicas of `serve`, over one store.

Placing, health and scaling are Ray's; that any replica may take any turn comes from the store,
which therefore has to be one that all of them see. The easy mistake is a directory of one machine:
it is an error where the cluster has several. It needs the extra ``ray``.

    serve run langchain_rwkv_state.ray:app model=rwkv-7.pth store=redis://redis:6379/0

`docs/deploy.md` tells which ports Ray opens and who may reach them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from langchain_rwkv_state.ray.arguments import RayArguments
from langchain_rwkv_state.ray.replica import Replica
from langchain_rwkv_state.serve.settings import ServeError

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["RayArguments", "app"]

_TRIES = 5
"""How often a replica is started before that is an error: a model that is not there stays away."""
_AFFINE_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


def app(args: Mapping[str, Any]) -> Application:
    """Builds the application, as ``serve run`` and a file of Ray Serve's ask for it.

    Args:
        args: What stood behind the name, or under ``args`` in the file: see `RayArguments`.

    Returns:
        One deployment, ready to be run.

    Raises:
        ServeError: Ray is not installed, or the store is one that replicas cannot share.
        ValueError: There is no such argument, or it cannot have that value.

    Example:
        >>> from ray import serve  # doctest: +SKIP
        >>> serve.run(app({"store": "redis://redis:6379/0"}))  # doctest: +SKIP
    """
    try:
        from ray import serve
        from ray.serve.config import AutoscalingConfig, RequestRouterConfig
    except ImportError as error:
        raise ServeError(
            f"Ray Serve is not installed ({error}): pip install 'langchain-rwkv-state[ray,serve]', "
            "on every node."
        ) from error
    given = RayArguments.read(args)
    settings = given.serve_settings()
    router = RequestRouterConfig(request_router_class=_AFFINE_ROUTER) if given.affinity else None
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="rwkv",
        ray_actor_options={"num_cpus": given.num_cpus, "num_gpus": given.num_gpus},
        max_ongoing_requests=given.most_ongoing,
        max_queued_requests=given.max_queued_requests,
        autoscaling_config=AutoscalingConfig(
            min_replicas=given.min_replicas,
            max_replicas=given.max_replicas,
            target_ongoing_requests=given.target_ongoing,
            upscale_delay_s=given.upscale_delay_s,
            downscale_delay_s=given.downscale_delay_s,
        ),
        max_constructor_retry_count=_TRIES,
        graceful_shutdown_timeout_s=given.drain_seconds,
        health_check_period_s=given.health_check_period_s,
        health_check_timeout_s=given.health_check_timeout_s,
        **({} if router is None else {"request_router_config": router}),
    )
    return deployment.bind(settings)
