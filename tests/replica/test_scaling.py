"""The policy that scales a model, in Serve's own contexts. No Ray cluster."""

from typing import Any

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from deployments.app import model_options
from deployments.config import AppArgs, ModelArgs
from deployments.replica.scaling import LOAD_FAILED, replicas_wanted

MODEL = ModelArgs(name="tiny", max_replicas=3, idle_s=300)


class Deployment:
    """A deployment whose controller asks the policy again and again."""

    def __init__(self, replicas: int) -> None:
        options = model_options(
            AppArgs(models=[MODEL], default_model="tiny"), MODEL, 0.5
        )
        self.config = AutoscalingConfig(**options["autoscaling_config"])
        self.id = DeploymentID("whisper-tiny", "whisper")
        self.replicas = [ReplicaID(str(n), self.id) for n in range(replicas)]
        self.state: dict[str, Any] = {}

    def wanted(self, now: float, requests: float, *failed: bool) -> float:
        reports = {
            replica: [TimeStampedValue(now - 1, float(did))]
            for replica, did in zip(self.replicas, failed, strict=False)
        }
        context = AutoscalingContext(
            deployment_id=self.id,
            deployment_name=self.id.name,
            app_name=self.id.app_name,
            current_num_replicas=len(self.replicas),
            target_num_replicas=len(self.replicas),
            running_replicas=self.replicas,
            total_num_requests=requests,
            total_queued_requests=0.0,
            aggregated_metrics={},
            raw_metrics={LOAD_FAILED: reports},
            capacity_adjusted_min_replicas=0,
            capacity_adjusted_max_replicas=3,
            policy_state=self.state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now,
            config=self.config,
        )
        wanted, self.state = replicas_wanted(context)
        return wanted


def test_the_last_replica_stops_when_it_was_idle_for_long_enough() -> None:
    model = Deployment(1)
    assert model.wanted(1000, 1, False) == 1
    assert model.wanted(1299, 0, False) == 1
    assert model.wanted(1300, 0, False) == 0


def test_a_request_starts_the_time_anew() -> None:
    model = Deployment(1)
    model.wanted(1000, 0, False)
    assert model.wanted(1290, 0.1, False) == 1
    assert model.wanted(1580, 0, False) == 1
    assert model.wanted(1590, 0, False) == 0


def test_a_replica_that_could_not_load_its_model_stops_at_once() -> None:
    model = Deployment(1)
    assert model.wanted(1000, 1, False) == 1
    assert model.wanted(1001, 1, True) == 0


def test_a_replica_that_has_not_reported_yet_has_not_failed() -> None:
    assert Deployment(1).wanted(1000, 0) == 1


@pytest.mark.parametrize("failed", [(True, False), (True,)])
def test_a_model_with_one_good_replica_stays(failed: tuple[bool, ...]) -> None:
    assert Deployment(2).wanted(1000, 0, *failed) == 1


def test_a_model_that_does_not_run_stays_so_without_requests() -> None:
    assert Deployment(0).wanted(1000, 0) == 0


def test_more_requests_than_decode_together_start_more_replicas() -> None:
    assert Deployment(1).wanted(1000, 64, False) == 2
