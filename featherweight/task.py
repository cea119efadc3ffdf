"""The user's problem: how the network is called, trained and judged."""

from __future__ import annotations

import functools
import itertools
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from featherweight.errors import FeatherweightError, InputError, shortened
from featherweight.network.calls import Example, Inputs, first_tensor, inputs_in, tensors_of
from featherweight.network.copies import copied
from featherweight.network.devices import device_of, placed
from featherweight.network.evaluating import evaluating

Batch = Any
LOOKED = 16  # batches that a score without a part for testing is of
T = TypeVar("T")


class Batches(Protocol):
    """A sized iterable of batches, such as a `DataLoader`."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Any: ...


def itself(output: Any) -> Any:
    """The output as it is: `Task(logits=itself)` of a network whose one output is the logits."""
    return output


def _with_old_names(kind: type[T]) -> type[T]:
    """Takes and has the names of version 0.0 too, until 0.2."""
    make, renamed = kind.__init__, {"example": "example_inputs", "score": "evaluate"}

    @functools.wraps(make)
    def init(self: T, *args: Any, **kwargs: Any) -> None:
        for old, new in (renamed | {"batches": "train"}).items():
            if old in kwargs:  # beside the new one in `dataclasses.replace(task, score=..)`, which gives all that there is
                warnings.warn(f"Task({old}=...) is Task({new}=...) now", DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
        make(self, *args, **kwargs)

    kind.__init__ = init  # type: ignore[method-assign,assignment]
    for old, new in renamed.items():
        setattr(kind, old, property(operator.attrgetter(new), doc=f"`{new}`, as version 0.0 called it"))
    return kind


@_with_old_names
@dataclass(frozen=True)
class Task:
    """The user's problem: how the network is called, how it is trained and judged, and which output holds the logits.

    example_inputs  the network's inputs, batch size 1: a tuple by position, a dict by name, or `calls.Inputs` for both. None,
                    numbers and nests of tensors may be among them
    train           a `DataLoader`, or any sized iterable of batches; or epoch -> the batches of that epoch, with order and
                    augmentation a function of the epoch, which a run that is taken up again repeats whatever draws them
    loss            (network, batch) -> scalar tensor, differentiable. It calls the network as it likes
    evaluate        network -> float on held-out data, higher is better (the built-in tasks: accuracy in percent)
    optimizer       parameters -> a fresh optimizer at its base learning rate; called anew in each phase of a stage, and once to
                    be looked at before. Where weights have become codes it gets what of them is trained
    logits          output of the network -> its logits, such as `lambda output: output["logits"]` or `itself`; in training mode
                    and in eval mode. None: no output is logits, as in regression
    classes         the dimension of the classes in them: 1 for (batch, classes, ...), -1 for (batch, time, classes)
    labels          False: the data are inputs alone, and `loss` runs the network and teaches nothing (see `unlabelled`)

    >>> import torch
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> data = TensorDataset(torch.randn(32, 8), torch.randint(0, 3, (32,)))
    >>> task = Task.classification(DataLoader(data, 16), DataLoader(data, 16))
    >>> len(task.batches(0)), task.example_inputs[0].shape
    (2, torch.Size([1, 8]))
    """

    example_inputs: Example | Inputs
    train: Batches | Callable[[int], Batches]
    loss: Callable[[nn.Module, Batch], Tensor]
    evaluate: Callable[[nn.Module], float]
    optimizer: Callable[[Iterable[Parameter]], Optimizer]
    logits: Callable[[Any], Tensor] | None = None
    classes: int = 1
    labels: bool = True

    def batches(self, epoch: int) -> Batches:
        """The training batches of an epoch."""
        return self.train(epoch) if callable(self.train) else self.train

    @classmethod
    def classification(
        cls,
        train: Batches | Callable[[int], Batches],
        test: Iterable[Batch],
        *,
        optimizer: Callable[[Iterable[Parameter]], Optimizer] | None = None,
        example_inputs: Example | Inputs | None = None,
    ) -> Task:
        """Classes of single inputs: batches are (inputs, labels), outputs logits (batch, classes, ...), labels (batch, ...).

        The loss is the cross-entropy, the score the accuracy in percent. `optimizer`: Adam at 1e-3 without one; where the network
        was trained with another, give that one. `example_inputs`: the first input of `train` without them. Batches go to the
        network's device. Raises InputError where `train` holds no pairs.
        """
        if example_inputs is None:
            batch = next(iter(train(0) if callable(train) else train), None)
            if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[0], Tensor):
                raise InputError(
                    f"Task.classification needs batches that are pairs (inputs, labels), and `train` gives {_kind(batch)}: give "
                    "featherweight.Task your own loss and evaluate"
                )
            example_inputs = (batch[0][:1],)

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            inputs, labels = placed(batch, device_of(network))
            return F.cross_entropy(network(inputs), labels)

        def evaluate(network: nn.Module) -> float:
            right = total = 0
            with evaluating(network), torch.no_grad():
                for batch in test:
                    inputs, labels = placed(batch, device_of(network))
                    right += int((network(inputs).argmax(1) == labels).sum())
                    total += labels.numel()
            if total == 0:
                raise InputError("the test data of Task.classification hold no batch: there is nothing to score on")
            return 100 * right / total

        def adam(parameters: Iterable[Parameter]) -> Optimizer:
            return torch.optim.Adam(parameters, lr=1e-3)

        return cls(example_inputs, train, loss, evaluate, optimizer or adam, logits=itself)

    @classmethod
    def unlabelled(
        cls,
        model: nn.Module,
        train: Batches | Callable[[int], Batches],
        *,
        test: Iterable[Batch] | None = None,
        evaluate: Callable[[nn.Module], float] | None = None,
        optimizer: Callable[[Iterable[Parameter]], Optimizer] | None = None,
        example_inputs: Example | Inputs | None = None,
    ) -> Task:
        """Inputs without labels, for what is taught by `model` itself, the dense network: the recipe `reconstruct`.

        A batch is the network's inputs, begins with them, or holds them by name. The score, without `evaluate`: percent of the
        variance of the dense network's outputs that is kept, on `test` or without it on the first batches of `train`.
        `example_inputs`: without them a batch is one tensor, or its first entry is the only input. Raises InputError.
        """
        if example_inputs is None:
            batch = next(iter(train(0) if callable(train) else train), None)
            first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if not isinstance(first, Tensor):
                raise InputError(
                    f"Task.unlabelled needs batches of tensors, and `train` gives {_kind(batch)}: say example_inputs"
                )
            example_inputs = (first[:1],)
        example = example_inputs
        dense = copied(model)

        def called(network: nn.Module, batch: Batch) -> list[Tensor]:
            given = placed(inputs_in(batch, example), device_of(network))
            return [tensor for tensor in tensors_of(given.call(network)) if tensor.is_floating_point()]

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            return torch.stack([(output - output.detach()).square().mean() for output in called(network, batch)]).sum()

        def kept(network: nn.Module) -> float:
            gone = whole = 0.0
            looked = test if test is not None else itertools.islice(iter(train(0) if callable(train) else train), LOOKED)
            with evaluating(network), evaluating(dense.to(device_of(network))), torch.no_grad():
                for batch in looked:
                    for ours, theirs in zip(called(network, batch), called(dense, batch), strict=True):
                        gone += float((ours - theirs).double().square().sum())
                        whole += float((theirs - theirs.mean(0)).double().square().sum())
            return 100 * (1 - gone / whole) if whole > 0 else 0.0

        def adam(parameters: Iterable[Parameter]) -> Optimizer:
            return torch.optim.Adam(parameters, lr=1e-3)

        return cls(example, train, loss, evaluate or kept, optimizer or adam, labels=False)


def _kind(batch: Any) -> str:
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {len(batch)}"
    return "none" if batch is None else f"a {type(batch).__name__}"


def first_batches(task: Task, epoch: int, samples: int) -> Iterator[Batch]:
    """The first batches of an epoch that hold so many samples."""
    seen = 0
    for batch in task.batches(epoch):
        yield batch
        first = first_tensor(batch)
        seen += 1 if first is None else len(first)
        if seen >= samples:
            return


def loss_in_eval(task: Task, model: nn.Module, batch: Batch) -> Tensor:
    """The task's loss of a network in eval mode. Raises InputError where it takes only what training mode gives."""
    try:
        return task.loss(model, batch)
    except FeatherweightError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise InputError(
            f"the task's loss fails in eval mode while the network is watched: {type(error).__name__}: "
            f"{shortened(str(error).strip())}. Let it take what the network gives there too; where units are to be ranked, l1 "
            "and l2 look at weights alone"
        ) from error


@dataclass(frozen=True)
class Steps:
    """`count` batches of an iterable that does not know its length, such as a DataLoader over a stream."""

    batches: Iterable[Batch]
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        return itertools.islice(iter(self.batches), self.count)


def steps_of(task: Task, epoch: int) -> int:
    """Batches in an epoch. Raises InputError where their number is not known, or 0."""
    batches = task.batches(epoch)
    try:
        count = len(batches)
    except TypeError:
        raise InputError(
            f"the task's `train` gives a {type(batches).__name__} without a length, and rates follow the share of the "
            "steps that is done. Give a list or a DataLoader over a sized data set, or say how many batches an epoch is: "
            "train=featherweight.Steps(loader, 500)"
        ) from None
    if count == 0:
        raise InputError(
            f"the task's `train` holds no batch in epoch {epoch}: there is nothing to train on. Is the data set empty, or "
            "smaller than one batch with drop_last=True?"
        )
    return count
