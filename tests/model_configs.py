"""Configurations for tests, from the knobs that they turn most."""

from __future__ import annotations

from convserve.engine.config import DynamicBatching, InstanceGroup, ModelConfig, QueuePolicy


def make_config(
    *,
    max_batch_size=64,
    max_queue_delay=0.0,
    max_queue_size=1024,
    instances=1,
    layer_outputs=False,
    policy=None,
    **batching,
):
    """`max_queue_delay` in seconds; other keywords go into DynamicBatching."""
    queue = {"max_queue_size": max_queue_size, **(policy or {})}
    return ModelConfig(
        max_batch_size=max_batch_size,
        layer_outputs=layer_outputs,
        instance_group=InstanceGroup(count=instances),
        dynamic_batching=DynamicBatching(
            max_queue_delay_microseconds=round(max_queue_delay * 1e6),
            default_queue_policy=QueuePolicy(**queue),
            **batching,
        ),
    )
