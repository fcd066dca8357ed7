"""Optimisers, schedules and settings against formulas worked out by hand."""

from __future__ import annotations

import json
from itertools import pairwise
from math import cos, pi, sqrt

import numpy as np
import pytest

from convserve.errors import TrainingError
from convserve.training import SGD, Adam, Group, TrainConfig
from convserve.training.make_optimiser import make_optimiser
from convserve.training.schedules import (
    constant,
    cosine,
    linear,
    make_schedule,
    one_cycle,
    piecewise,
    step,
)

GRADS = [0.5, -1.0, 0.25]
LR = 0.1


def run(optimiser, start=2.0, shape=(1, 1)):
    """The parameter after each of three updates."""
    params = {"p": np.full(shape, start, np.float32)}
    optimiser.prepare(params)
    values = []
    for grad in GRADS:
        optimiser.update(params, {"p": np.full(shape, grad, np.float32)}, LR)
        values.append(float(params["p"].flat[0]))
    return values


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_sgd(nesterov, decay):
    p, v, expected = 2.0, 0.0, []
    for grad in GRADS:
        g = grad + decay * p
        v = 0.9 * v + g
        p -= LR * (g + 0.9 * v if nesterov else v)
        expected.append(p)
    found = run(SGD(0.9, nesterov=nesterov, weight_decay=decay))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_adam(decoupled, decay):
    p, m, v, expected = 2.0, 0.0, 0.0, []
    for t, grad in enumerate(GRADS, 1):
        g = grad if decoupled else grad + decay * p
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        if decoupled:
            p -= LR * decay * p
        p -= LR * (m / (1 - 0.9**t)) / (sqrt(v / (1 - 0.999**t)) + 1e-8)
        expected.append(p)
    found = run(Adam(weight_decay=decay, decoupled=decoupled))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", [SGD, Adam])
def test_biases_and_batch_norm_do_not_decay(make):
    assert run(make(weight_decay=0.2), shape=(3,)) == run(make(), shape=(3,))


@pytest.mark.parametrize("make", [SGD, Adam])
def test_the_state_is_float32_and_live(make):
    optimiser = make()
    run(optimiser, shape=(2, 2))
    assert optimiser.steps == 3
    for array in optimiser.state().values():
        assert array.dtype == np.float32
        assert array.shape == (2, 2)
        assert array.any()


def test_shapes_of_the_schedules():
    assert constant(0.9) == 1
    assert [step(p) for p in (0, 0.49, 0.5, 0.74, 0.75, 0.99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert cosine(0) == 1
    assert cosine(0.5) == pytest.approx(0.5)
    assert cosine(0.25) == pytest.approx((1 + cos(pi / 4)) / 2)


def test_a_schedule_warms_up_and_then_decays_to_nearly_nothing():
    rate = make_schedule(TrainConfig(epochs=4, lr=2.0, warmup=1), steps_per_epoch=10)
    rates = [rate(i) for i in range(40)]
    np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 11)
    assert rates[10] == 2.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.01


def test_linear_one_cycle_and_piecewise():
    assert [linear(p) for p in (0, 0.25, 1)] == [1, 0.75, 0]
    assert one_cycle(0) == pytest.approx(1 / 25)
    assert one_cycle(0.15) == pytest.approx((1 + 1 / 25) / 2)
    assert one_cycle(0.3) == 1
    assert one_cycle(0.65) == pytest.approx(0.5, abs=1e-5)
    assert 0 < one_cycle(1) < 1e-5
    through = piecewise(((0.0, 0.2), (0.23, 1.0), (1.0, 0.07)))
    shares = np.linspace(0, 1, 50)
    expected = np.interp(shares, [0, 0.23, 1], [0.2, 1, 0.07])
    np.testing.assert_allclose([through(p) for p in shares], expected)
    late = piecewise(((0.5, 3.0), (0.6, 1.0)))
    assert [late(0.1), late(0.9)] == [3.0, 1.0]


@pytest.mark.parametrize("schedule", ["one-cycle", "piecewise"])
def test_schedules_that_rise_by_themselves_have_no_warmup(schedule):
    with_it, without = (
        make_schedule(TrainConfig(lr=1.0, warmup=w, schedule=schedule), 10) for w in (2, 0)
    )
    assert [with_it(i) for i in range(100)] == [without(i) for i in range(100)]


def test_a_schedule_of_a_part_of_the_run_ends_there():
    config = TrainConfig(epochs=8, lr=2.0, warmup=0, schedule="linear")
    rate = make_schedule(config, 10, epochs=3)
    assert [rate(i) for i in (0, 15, 30, 79)] == [2.0, 1.0, 0.0, 0.0]


def test_warmup_leaves_half_of_a_short_run():
    rate = make_schedule(TrainConfig(epochs=1, lr=1.0, warmup=5, schedule="constant"), 8)
    assert [rate(i) == 1.0 for i in range(8)] == [False] * 4 + [True] * 4


def test_optimisers_by_their_settings():
    sgd = make_optimiser(TrainConfig(momentum=0.5, nesterov=False, weight_decay=0.1))
    assert isinstance(sgd, SGD)
    assert (sgd.momentum, sgd.nesterov, sgd.weight_decay) == (0.5, False, 0.1)
    adam = make_optimiser(TrainConfig(optimiser="adam", weight_decay=0.1))
    assert isinstance(adam, Adam)
    assert (adam.weight_decay, adam.decoupled) == (0.1, False)
    adamw = make_optimiser(TrainConfig(optimiser="adamw", weight_decay=0.1))
    assert isinstance(adamw, Adam)
    assert (adamw.weight_decay, adamw.decoupled) == (0.1, True)
    assert TrainConfig().lr == 0.05
    assert TrainConfig(optimiser="adam").lr == 0.001


def test_settings_survive_json():
    config = TrainConfig(
        groups=(Group("bn*.bias", lr=64.0), Group("conv1.bias", until=3.0)),
        freeze=("conv1.weight",),
        points=((0.0, 1.0), (1.0, 0.0)),
        class_weights=(1.0, 2.0),
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(TrainingError, match=r"no setting 'epoch'; there are: .*epochs, batch_size"):
        TrainConfig.from_dict({"epoch": 3})
    for group in ({"lr": 1}, {"match": "*", "rate": 2}, "conv1"):
        with pytest.raises(TrainingError, match="a group needs match, and may have lr, weight"):
            TrainConfig.from_dict({"groups": [group]})
    with pytest.raises(TrainingError, match=r"lr of group 'conv1' must be .* not below 0, not -1"):
        Group("conv1", lr=-1)
    with pytest.raises(TrainingError, match="rule of group 'conv1' must be one of muon, sgd"):
        Group("conv1", rule="adam")
    with pytest.raises(TypeError, match="until of group 'conv1'"):
        Group("conv1", until="3")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"batch_size": -3}, "batch_size must be at least 1, not -3"),
        ({"lr": 0.0}, "lr must be above 0 and finite, not 0.0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1"),
        ({"weight_decay": float("inf")}, "weight_decay must be at least 0 and finite"),
        ({"label_smoothing": -0.1}, "label_smoothing must be"),
        ({"optimiser": "adagrad"}, "one of adam, adamw, muon, sgd, not 'adagrad'"),
        ({"schedule": "poly"}, "schedule must be one of constant, cosine, linear, one-cycle"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"points": ((0.5, 1.0), (0.5, 0.1))}, "points must rise"),
        ({"class_weights": "even"}, "class_weights must be one of balanced"),
        ({"class_weights": (0.0, 0.0)}, "must not all be 0"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(TrainingError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 1.0},
        {"lr": "1"},
        {"flip": 1},
        {"shift": True},
        {"groups": [Group("*")]},
        {"points": ((0.5,),)},
        {"class_weights": 3},
    ],
)
def test_settings_of_a_wrong_type_are_refused(settings):
    with pytest.raises(TypeError, match=next(iter(settings))):
        TrainConfig(**settings)
