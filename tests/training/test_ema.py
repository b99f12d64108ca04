"""The moving average: Eq. 5 over parameters and buffers, in place."""

import pytest
import torch
from torch import nn

from semires.training.ema import make_teacher, update_ema


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))
        self.register_buffer("scale", torch.rand(4, dtype=torch.float64))
        self.register_buffer("index", torch.arange(5))


def trained(seed):
    torch.manual_seed(seed)
    net = Net().train()
    for _ in range(3):
        net.layers(torch.randn(2, 2, 8, 8) * 3 + 1)
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.add_(torch.randn_like(tensor))
    net.index += seed
    return net


@pytest.mark.parametrize("decay", [0.996, 0.98, 0.5, 0.0, 1.0])
def test_equals_the_formula_entry_by_entry(decay):
    teacher, student = make_teacher(trained(1)), trained(2)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    untouched = {name: value.clone() for name, value in student.state_dict().items()}
    update_ema(teacher, student, decay)
    after = teacher.state_dict()
    for name, value in student.state_dict().items():
        assert torch.equal(value, untouched[name])
        if value.is_floating_point():
            wanted = decay * before[name].double() + (1 - decay) * value.double()
            torch.testing.assert_close(after[name].double(), wanted, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(after[name], value)


def test_many_steps_follow_the_student_geometrically():
    teacher, student = make_teacher(trained(1)), trained(2)
    start = teacher.layers[0].weight.clone()
    goal = student.layers[0].weight.detach()
    for _ in range(50):
        update_ema(teacher, student, 0.9)
    wanted = goal + (start - goal) * 0.9**50
    torch.testing.assert_close(teacher.layers[0].weight.detach(), wanted, rtol=1e-5, atol=1e-6)


def test_works_in_place_without_gradient():
    teacher, student = make_teacher(trained(1)), trained(2)
    places = [t.data_ptr() for t in teacher.state_dict().values()]
    update_ema(teacher, student, 0.9)
    assert [t.data_ptr() for t in teacher.state_dict().values()] == places
    assert all(not p.requires_grad and p.grad_fn is None for p in teacher.parameters())


def test_the_teacher_is_a_copy_in_eval_mode():
    student = trained(3)
    teacher = make_teacher(student)
    assert not any(module.training for module in teacher.modules())
    assert student.training
    assert all(p.requires_grad for p in student.parameters())
    for name, value in student.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], value)
        assert teacher.state_dict()[name].data_ptr() != value.data_ptr()


def test_equal_networks_stay_equal():
    student = trained(4)
    teacher = make_teacher(student)
    for _ in range(10):
        update_ema(teacher, student, 0.996)
    for name, value in student.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], value)


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="zip"):
        update_ema(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 0.9)
