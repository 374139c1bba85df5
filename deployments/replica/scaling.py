"""When Serve stops the replicas of a model.

Serve's own policy, with two exceptions: the last replica of a model, and one that could not load
its model.

Serve's controller runs this, so it imports nothing of the service.
"""

from typing import Any

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext

# Of `WhisperModel.record_autoscaling_stats`.
LOAD_FAILED = "load_failed"
_LAST_USED = "last_used"


def replicas_wanted(ctx: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """How many replicas there should be, and `ctx.policy_state` of the next call.

    Down to one replica, this is Serve's policy. The last one stops after `downscale_delay_s`
    without a request, or at once if it could not load its model. A replica without a model would
    keep its share of a GPU from the other models, and the next request starts a new one anyway.
    Serve lets the replica answer its callers before it stops. `downscale_to_zero_delay_s` has to be
    0, because Serve would add it.
    """
    wanted, state = replica_queue_length_autoscaling_policy(ctx)
    if ctx.target_num_replicas == 0:
        return wanted, state
    if _all_failed_to_load(ctx):
        return 0, state
    config: Any = ctx.config
    now = ctx.current_time or 0.0
    last_used = now if wanted > 0 else ctx.policy_state.get(_LAST_USED, now)
    if now - last_used < config.downscale_delay_s:
        wanted = max(wanted, 1)
    return wanted, state | {_LAST_USED: last_used}


def _all_failed_to_load(ctx: AutoscalingContext) -> bool:
    reports = (ctx.raw_metrics or {}).get(LOAD_FAILED, {})
    latest = [reports.get(replica) for replica in ctx.running_replicas]
    return bool(latest) and all(series and series[-1].value for series in latest)
