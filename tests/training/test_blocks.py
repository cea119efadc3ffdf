"""What the layers of a cut network put out, beside what the dense network's layers put out of the same units."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from featherweight import Task
from featherweight.files.edits import entries_left, structure_edit
from featherweight.network.copies import copied
from featherweight.structure import prune, trace
from featherweight.training.distillation import distilled
from featherweight.training.fit import fit
from featherweight.training.schedule import BLOCKS, Training


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(5, 8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.Flatten(), nn.Linear(48, 3))


NETWORKS = {"convolutions": (convolutions, (3, 10)), "recurrent": (Recurrent, (6, 5))}


@pytest.mark.parametrize("name", NETWORKS)
def test_units_that_are_left_are_held_against_themselves(name: str) -> None:
    """Where the units that went gave nothing, every layer gives what the dense one's gives of the others: the distance is 0, also
    after a second cut; matched with other units it is not."""
    torch.manual_seed(0)
    made, shape = NETWORKS[name]
    dense, x = made().double().eval(), torch.randn(6, *shape, dtype=torch.float64)
    task, small, edits = Task.unlabelled(dense, [x]), copied(dense), []
    graph = trace(dense, (x[:1],))
    site = next(iter(graph.sites))
    for reading in (r for r in graph.walk.readings if r.weight):
        weight, dim = dense.get_parameter(reading.weight), reading.weight_dim
        if any((reading.weight, dim) == place for place in graph.site(site).parameters):
            with torch.no_grad():
                weight.index_fill_(dim, torch.tensor([0, 1, 5]), 0)
    small.load_state_dict(dense.state_dict())
    for keep in ([1, 2, 3, 4, 6, 7], [1, 2, 3, 4, 5]):
        done = prune(small, trace(small, (x[:1],)), site, keep)
        edits.append(structure_edit(done.edit))
    left = entries_left(edits)
    assert any(kept.tolist() == [2, 3, 4, 6, 7] for kept in left.values())
    near, far = (
        float(distilled(task, small, x, dense, BLOCKS, given).detach())
        for given in (left, {place: torch.arange(len(kept)) for place, kept in left.items()})
    )
    assert near < 1e-12 and far > 1e-3


def test_every_layer_of_a_recurrent_stack_is_heard() -> None:
    """Weights of the first layer that differ are told by that layer alone where the second does not listen to it."""
    torch.manual_seed(0)
    dense, x = Recurrent().eval(), torch.randn(6, 6, 5)
    with torch.no_grad():
        dense.lstm.weight_ih_l1.zero_()
    other = copied(dense)
    with torch.no_grad():
        other.lstm.weight_hh_l0.mul_(-1)
    task = Task.unlabelled(dense, [x])
    assert float(distilled(task, dense, x, copied(dense), BLOCKS).detach()) == 0
    loss = distilled(task, other, x, dense, BLOCKS)
    loss.backward()
    assert float(loss.detach()) > 1e-3 and float(other.lstm.weight_hh_l0.grad.norm()) > 0
    assert "forward" not in vars(other.lstm) and "forward" not in vars(dense.lstm)


def test_layers_weigh_less_and_less_and_the_outputs_have_the_last_word() -> None:
    """A layer that the outputs do not hear moves by its own distance alone: by w / (1 + 2 w) of it, where w falls from 1 in equal
    steps to one step above 0, with two layers that are heard and one output."""
    torch.manual_seed(0)
    dense, x = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), torch.randn(6, 4)
    with torch.no_grad():
        dense[1].weight.zero_()
    network = copied(dense)
    with torch.no_grad():
        network[0].weight.add_(0.1)
    moves: list[float] = []
    optimizer = torch.optim.SGD(network.parameters(), 0.0)
    optimizer.register_step_pre_hook(lambda *_: moves.append(float(network[0].weight.grad.norm())))
    task = Task.unlabelled(dense, [x, x])
    fit(network, optimizer, task, Training(2), teacher=dense, distill=BLOCKS)
    assert moves[0] > 1e-4
    assert [move / moves[0] for move in moves] == pytest.approx([3 * w / (1 + 2 * w) for w in (1, 0.75, 0.5, 0.25)], rel=1e-4)
    alone = distilled(task, network, x, dense, BLOCKS, inner=0.0)
    alone.backward()
    assert float(alone.detach()) == 0
