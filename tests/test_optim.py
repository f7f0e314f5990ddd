from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from intl_transfer.errors import UserError
from intl_transfer.optim import LARS, load_optimizer


def by_the_formula(weights, gradients, lr, momentum, decay, eta):
    """Plain Python, one number or matrix at a time, in float64."""
    weights = [w.double().clone() for w in weights]
    buffers = [torch.zeros_like(w) for w in weights]
    for step in gradients:
        for i, (w, g) in enumerate(zip(weights, step, strict=True)):
            update = g.double() + decay * w
            if w.dim() > 1 and float(w.norm()) > 0 and float(update.norm()) > 0:
                update = update * eta * w.norm() / update.norm()
            buffers[i] = momentum * buffers[i] + update
            weights[i] = w - lr * buffers[i]
    return weights


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_follows_its_formula(decay):
    torch.manual_seed(0)
    weights = [torch.randn(4, 3), torch.randn(3), torch.zeros(2, 2), torch.randn(2, 3, 1, 1)]
    gradients = [[torch.randn_like(w) for w in weights] for _ in range(5)]
    gradients[2][0].zero_()
    expected = by_the_formula(weights, gradients, 0.3, 0.9, decay, 0.01)
    parameters = [w.clone().requires_grad_() for w in weights]
    optimizer = LARS(parameters, lr=0.3, momentum=0.9, weight_decay=decay, eta=0.01)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    for parameter, requested in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach().double(), requested, rtol=1e-5, atol=1e-6)


def test_lars_continues_from_its_state():
    torch.manual_seed(0)
    first = torch.nn.Linear(3, 2)
    one = LARS(first.parameters(), lr=0.1)
    first(torch.ones(1, 3)).sum().backward()
    one.step()
    second = torch.nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    two = LARS(second.parameters(), lr=0.1)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for layer, optimizer in ((first, one), (second, two)):
        layer.zero_grad()
        layer(torch.full((1, 3), 2.0)).sum().backward()
        optimizer.step()
    assert torch.equal(first.weight, second.weight)


@pytest.mark.parametrize("kind", [LARS, partial(torch.optim.SGD, fused=True)], ids=["lars", "sgd"])
def test_a_continued_run_follows_its_own_settings(kind):
    torch.manual_seed(0)
    weight, gradients = torch.randn(3), torch.randn(2, 3)

    def step(parameter, optimizer, gradient):
        optimizer.param_groups[0]["lr"] = 0.1
        parameter.grad = gradient.clone()
        optimizer.step()

    begun = weight.clone().requires_grad_()
    first = kind([begun], lr=0.1, momentum=0.9, weight_decay=0.01)
    step(begun, first, gradients[0])
    continued = begun.detach().clone().requires_grad_()
    second = kind([continued], lr=0.1, momentum=0.5, weight_decay=0.3)
    load_optimizer(second, copy.deepcopy(first.state_dict()))
    step(continued, second, gradients[1])

    # Plain SGD, in float64: parameters of one dimension have no rate of their own in LARS either.
    expected, buffer = weight.double(), torch.zeros(3).double()
    for gradient, (momentum, decay) in zip(gradients, [(0.9, 0.01), (0.5, 0.3)], strict=True):
        buffer = momentum * buffer + gradient + decay * expected
        expected = expected - 0.1 * buffer
    torch.testing.assert_close(continued.detach().double(), expected, rtol=1e-6, atol=1e-7)


def test_another_grouping_is_refused():
    one, two = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    state = torch.optim.SGD([{"params": [one]}, {"params": [two]}], lr=0.1).state_dict()
    with pytest.raises(UserError, match=r"groups of \[2\], its checkpoint in groups of \[1, 1\]"):
        load_optimizer(torch.optim.SGD([one, two], lr=0.1), state)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_group_without_gradients_is_left_as_it_is(decay):
    """As torch's SGD does, which LARS is for parameters of one dimension."""
    torch.manual_seed(0)
    start, updated = torch.randn(2, 3), []
    for kind in (LARS, torch.optim.SGD):
        used, unused = (row.clone().requires_grad_() for row in start)
        groups = [{"params": [used]}, {"params": [unused]}]
        optimizer = kind(groups, lr=0.1, momentum=0.9, weight_decay=decay)
        used.sum().backward()
        optimizer.step()
        assert torch.equal(unused, start[1])
        updated.append(used.detach())
    torch.testing.assert_close(*updated)


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "eta"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_settings_without_a_meaning_are_refused(name, value):
    parameter = torch.zeros(2, requires_grad=True)
    with pytest.raises(ValueError, match=rf"{name} is .*; expected a finite number, 0 or more"):
        LARS([{"params": [parameter], name: value}], lr=0.1)
