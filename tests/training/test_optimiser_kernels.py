"""The fused pass against NumPy in float64; flat or apart, and the same bits on any threads."""

from __future__ import annotations

import numpy as np
import pytest

from convserve import kernels
from convserve.errors import ShapeError, UnknownNameError
from convserve.graph import architectures
from convserve.kernels._optimiser import Arena
from convserve.training import SGD, Adam, Group, Muon, TrainConfig
from convserve.training.averaging import EMA, Lookahead
from convserve.training.groups import settings_for
from convserve.training.make_optimiser import make_optimiser
from convserve.training.muon import orthogonalised

SHAPES = {
    "conv1.weight": (8, 3, 3, 3),
    "conv1.bias": (8,),
    "bn1.bias": (8,),
    "affine1.weight": (5, 12),
    "affine1.bias": (5,),
}


def arrays(seed, flat=False, scale=1.0):
    """Random arrays by name: apart, or views into one flat array."""
    rng = np.random.default_rng(seed)
    made = {
        name: (scale * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    if not flat:
        return made
    whole = np.concatenate([value.reshape(-1) for value in made.values()])
    at, views = 0, {}
    for name, value in made.items():
        views[name] = whole[at : at + value.size].reshape(value.shape)
        at += value.size
    return views


def reference(params, decay, momentum, nesterov, decoupled, clip, lrs, steps=3):
    """SGD in float64, as its docstring says."""
    params = {name: value.astype(np.float64) for name, value in params.items()}
    velocity = {name: np.zeros_like(value) for name, value in params.items()}
    for step in range(steps):
        grads = {n: g.astype(np.float64) for n, g in arrays(100 + step).items()}
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        scale = min(1.0, clip / norm) if clip else 1.0
        for name, p in params.items():
            d = decay if p.ndim > 1 else 0.0
            g = scale * grads[name]
            if decoupled:
                p *= 1 - lrs[name] * d
            else:
                g = g + d * p
            velocity[name] = momentum * velocity[name] + g
            p -= lrs[name] * (g + momentum * velocity[name] if nesterov else velocity[name])
    return params


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("clip", [None, 3.0])
def test_sgd_in_groups(flat, nesterov, decoupled, clip):
    groups = [Group("bn*.bias", lr=64), Group("conv1", lr=0.5), Group("conv1.bias", lr=2)]
    params = arrays(1, flat)
    expected = reference(
        params, 0.1, 0.8, nesterov, decoupled, clip,
        {"conv1.weight": 0.005, "conv1.bias": 0.02, "bn1.bias": 0.64, "affine1.weight": 0.01,
         "affine1.bias": 0.01},
    )  # fmt: skip
    optimiser = SGD(
        0.8, nesterov=nesterov, decoupled=decoupled, weight_decay=0.1, clip=clip, groups=groups
    )
    optimiser.prepare(params)
    for step in range(3):
        optimiser.update(params, arrays(100 + step, flat), 0.01)
    for name, value in params.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_gradients_in_the_same_arrays_are_read_again_each_time():
    """As a compiled step gives them: one mapping, whose arrays change."""
    params, again = arrays(1, True), arrays(1, True)
    grads = arrays(0, True)
    kept, fresh = Adam(), Adam()
    kept.prepare(params)
    fresh.prepare(again)
    for step in range(3):
        now = arrays(100 + step)
        for name, value in grads.items():
            value[...] = now[name]
        kept.update(params, grads, 0.01)
        fresh.update(again, now, 0.01)
    assert all(params[name].tobytes() == again[name].tobytes() for name in params)


def test_frozen_parameters_stay_and_have_no_state():
    params = arrays(1)
    before = {name: value.copy() for name, value in params.items()}
    optimiser = make_optimiser(TrainConfig(freeze=("conv*", "affine1.bias")))
    optimiser.prepare(params)
    optimiser.update(params, arrays(2), 0.1)
    changed = {name for name in params if not np.array_equal(params[name], before[name])}
    assert changed == {"bn1.bias", "affine1.weight"}
    assert set(optimiser.state()) == {"velocity.bn1.bias", "velocity.affine1.weight"}


def test_a_group_that_rests_early_has_a_schedule_of_its_own():
    settings = settings_for(
        arrays(1),
        [Group("conv1.bias", until=3)],
        schedule=lambda epochs: lambda step: 10 * epochs - step,
    )
    schedule = settings["conv1.bias"].schedule
    assert schedule is not None
    assert [schedule(step) for step in (0, 29)] == [30, 1]
    assert settings["conv1.weight"].schedule is None


def test_a_pattern_without_a_parameter_is_refused():
    with pytest.raises(UnknownNameError, match=r"'conv9'; there are: conv1\.weight"):
        settings_for(arrays(1), [Group("conv9")])


def test_bits_do_not_depend_on_the_threads():
    """Large enough to be shared out, in parts that end within a piece."""
    found = []
    before = kernels.num_threads()
    for threads in (1, 2):
        kernels.set_num_threads(threads)
        rng = np.random.default_rng(0)
        params = [rng.standard_normal(n, np.float32) for n in (1_000_000, 77_777, 3)]
        arena = Arena(params, 2)
        arena.bind(tuple(rng.standard_normal(p.size, np.float32) for p in params))
        lr, decay = np.full(3, 0.01, np.float32), np.full(3, 0.1, np.float32)
        norm = arena.squared_norm()
        arena.adam(lr, decay, 0.9, 0.999, 1e-8, True, 0.5, 1)
        arena.lerp(0.25)
        found.append((norm, [p.tobytes() for p in params]))
    kernels.set_num_threads(before)
    assert found[0] == found[1]


def test_the_squared_norm_is_summed_in_double():
    x = np.full(100_000, 0.1, np.float32)
    arena = Arena([np.zeros_like(x)])
    arena.bind((x,))
    assert arena.squared_norm() == pytest.approx(float((x.astype(np.float64) ** 2).sum()), 1e-12)


def test_arrays_that_do_not_fit_are_refused():
    good = np.zeros((2, 3), np.float32)
    for bad in (good.T, good.astype(np.float64), np.broadcast_to(good[0], (2, 3))):
        with pytest.raises(ShapeError, match="C-contiguous float32"):
            Arena([bad])
    arena = Arena([good], 1)
    with pytest.raises(ShapeError, match="no arrays are bound"):
        arena.lerp(0.5)
    with pytest.raises(ShapeError, match="2 arrays for 1"):
        arena.bind((good, good))
    with pytest.raises(ShapeError, match=r"\(3,\) for a parameter of \(2, 3\)"):
        arena.bind((good[0],))
    arena.bind((good,))
    with pytest.raises(ShapeError, match="1 values"):
        arena.sgd(np.zeros(2, np.float32), np.zeros(1, np.float32), 0.9, True, False, 1.0)
    with pytest.raises(ShapeError, match="1 slots, the rule needs 2"):
        one = np.zeros(1, np.float32)
        arena.adam(one, one, 0.9, 0.999, 1e-8, True, 1.0, 1)
    optimiser = SGD()
    optimiser.prepare({"p": good})
    with pytest.raises(ShapeError, match="that prepare was given"):
        optimiser.update({"p": good.copy()}, {"p": good}, 0.1)


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (16, 16)])
def test_newton_schulz_brings_singular_values_near_one(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    kept = x.copy()
    y = orthogonalised(x, rounds=5)
    values = np.linalg.svd(y, compute_uv=False)
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    turned = u.T @ y @ vt.T  # the same singular vectors
    assert np.abs(turned - np.diag(np.diag(turned))).max() < 1e-4
    assert np.array_equal(x, kept)


def newton_schulz(x, rounds=3):
    """In float64, on the matrix as it stands."""
    turned = x.T if x.shape[0] > x.shape[1] else x
    y = turned / (np.linalg.norm(turned) + 1e-7)
    for _ in range(rounds):
        gram = y @ y.T
        y = 3.4445 * y + (-4.7750 * gram + 2.0315 * gram @ gram) @ y
    return y.T if x.shape[0] > x.shape[1] else y


def test_muon():
    params = arrays(1)
    weight = params["conv1.weight"].astype(np.float64)
    rest = {name: value for name, value in params.items() if name != "conv1.weight"}
    by_sgd = reference(rest, 0.1, 0.85, True, False, None, dict.fromkeys(rest, 0.3))
    velocity = np.zeros_like(weight)
    for step in range(3):
        grad = arrays(100 + step)["conv1.weight"].astype(np.float64)
        velocity = 0.6 * velocity + grad
        weight *= np.sqrt(8) / np.linalg.norm(weight)
        weight -= 0.2 * newton_schulz((grad + 0.6 * velocity).reshape(8, -1)).reshape(8, 3, 3, 3)
    optimiser = Muon(0.6, sgd_momentum=0.85, sgd_lr=1.5, weight_decay=0.1, head=["affine1.weight"])
    optimiser.prepare(params)
    for step in range(3):
        optimiser.update(params, arrays(100 + step), 0.2)
    np.testing.assert_allclose(params["conv1.weight"], weight, rtol=1e-4, atol=1e-5)
    for name, value in by_sgd.items():
        np.testing.assert_allclose(params[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert set(optimiser.state()) == {f"velocity.{name}" for name in params}


def test_muon_clips_by_the_norm_of_all_gradients_and_knows_the_head():
    graph = architectures.build("lenet")
    optimiser = make_optimiser(TrainConfig(optimiser="muon", clip=1.0), graph)
    assert isinstance(optimiser, Muon)
    assert optimiser.head == {"affine3.weight"}
    params = arrays(1)
    before = params["conv1.bias"].copy()
    optimiser = Muon(clip=1.0, sgd_momentum=0.0)
    optimiser.prepare(params)
    grads = arrays(2)
    optimiser.update(params, grads, 1.0)
    norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in grads.values()))
    np.testing.assert_allclose(
        params["conv1.bias"], before - grads["conv1.bias"] / norm, rtol=1e-5, atol=1e-6
    )


def test_groups_choose_who_updates_under_muon():
    params = {name: arrays(1)[name] for name in ("conv1.weight", "affine1.weight")}
    optimiser = Muon(groups=[Group("conv1", rule="sgd")])
    optimiser.prepare(params)
    assert list(optimiser._muon) == ["affine1.weight"]
    with pytest.raises(ShapeError, match=r"'bn1\.bias' has one axis"):
        Muon(groups=[Group("bn1.bias", rule="muon")]).prepare(arrays(1))


def test_ema_follows_every_parameter():
    params = arrays(1)
    average = EMA(params, 0.9)
    expected = {name: value.astype(np.float64) for name, value in params.items()}
    for step in range(1, 4):
        for value in params.values():
            value += 1
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in params.items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in average.params.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5)


def test_lookahead_draws_the_weights_to_slow_ones_and_ends_on_them():
    params = {"p": np.zeros((1, 1), np.float32)}
    lookahead = Lookahead(params, every=2, decay=0.5, total=5)
    seen = []
    for step in range(1, 6):
        params["p"] += 1
        lookahead.update(step)
        seen.append(float(params["p"][0, 0]))
    a2, a4 = 0.25 * (2 / 5) ** 3, 0.25 * (4 / 5) ** 3
    slow2 = (1 - a2) * 2
    slow4 = slow2 + (1 - a4) * 2
    assert seen == pytest.approx([1, slow2, slow2 + 1, slow4, slow4], rel=1e-6)
