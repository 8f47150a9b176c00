"""One reward model on a cluster: Ray Serve's replicas and autoscaling, with the protocol of `vlp-gym serve`.

```python
from ray import serve
from vlp_gym.serving.ray import deployment

serve.run(deployment("vlp-compact").options(num_replicas=2).bind())
env = VLPRewardWrapper(env, "press the button", model="http://127.0.0.1:8000")
```
"""

from __future__ import annotations

from typing import Any

from vlp_gym.errors import missing_extra
from vlp_gym.serving.run import LOOPBACK, check_token
from vlp_gym.serving.wire import check_count

try:
    from ray import serve
    from ray.serve.config import RequestRouterConfig
except ImportError as error:
    raise missing_extra(error, 'Ray Serve is not installed: pip install "vlp_gym[ray]"') from error

MAX_WAITING = 1024
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


def deployment(
    model: str, *, token: str | None = None, device: str = "auto", max_batch: int = 64, cache_mb: int = 512
) -> Any:
    """A deployment of Ray Serve that answers the clients of `vlp-gym serve`.

    Each replica has the model, batches what waits over clients, and has a cache of its own. So a client stays with one
    replica, which has its frames; when replicas come or go, some clients change, and send their frames once more. How
    many replicas there are, and where, is Ray Serve's:
    ``deployment(...).options(num_replicas="auto", ray_actor_options={"num_gpus": 1}).bind()``.

    Args:
        model: a name for `load_reward_model`, which each replica loads.
        token: a token that clients must have (``VLP_GYM_SERVER_TOKEN``); without, the address must be one of loopback.
        device: where the model is; "auto" takes CUDA if there is one.
        max_batch: most windows in one call of the model.
        cache_mb: MiB for tokens of frames and sentences, of each replica.

    Raises:
        ValueError: an argument makes no sense.
    """
    check_count(max_batch, "max_batch")
    check_count(cache_mb, "cache_mb")
    token = check_token(token)

    def make() -> Any:
        from vlp_gym.models.registry import place_model
        from vlp_gym.serving.answer import Answerer
        from vlp_gym.serving.app import Limits, make_app
        from vlp_gym.serving.identity import describe
        from vlp_gym.serving.worker import Worker

        limits = Limits()
        answerer = Answerer(place_model(model, device), cache_mb << 20)
        served = describe(answerer.model, model, max_body=limits.max_body, max_places=limits.max_places)
        worker = Worker(answerer, max_batch, max_waiting=MAX_WAITING)
        return make_app(worker, served, token=token, hosts=None if token else LOOPBACK, limits=limits)

    @serve.ingress(make)
    class VLPRewardModel:
        """A replica."""

    router = RequestRouterConfig(request_router_class=ROUTER)
    return serve.deployment(VLPRewardModel, max_ongoing_requests=MAX_WAITING, request_router_config=router)
