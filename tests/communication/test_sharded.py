"""FSDP2 with quantized gradients: a small transformer, sharded over two processes."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import lqray
from tests.testing.ranks import run_ranks

WORDS, LENGTH = 16, 12
SMALL = {"bits": 3, "bucket_size": 256, "update_at": (0, 5), "update_every": 20}


class Transformer(nn.Module):
    """Says the square of each word: 30,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(WORDS, 32), nn.Parameter(0.1 * torch.randn(LENGTH, 32))
        layers = [nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(2)]
        self.layers, self.head = nn.ModuleList(layers), nn.Linear(32, WORDS)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        hidden = self.words(words) + self.places
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)


def sharded(policy: MixedPrecisionPolicy) -> nn.Module:
    model, mesh = Transformer(), init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def backward(model: nn.Module, rank: int, step: int) -> float:
    words = torch.randint(0, WORDS, (16, LENGTH), generator=torch.Generator().manual_seed(1000 * rank + step))
    said = model(words)
    loss = nn.functional.cross_entropy(said.reshape(-1, WORDS).float(), (words**2 % WORDS).reshape(-1))
    loss.backward()
    return float(loss)


def trained(rank: int, method: str | None, stop: int | None = None, half: bool = False) -> dict:
    """60 steps; what collectives were handed of gradients is counted where they are called."""
    warnings.simplefilter("ignore")
    policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if half else None)
    handed, original = [], dist.all_to_all_single

    def counting(output, given, **others):
        handed.append(given.numel() * given.element_size())
        return original(output, given, **others)

    dist.all_to_all_single = counting

    def make():
        model = sharded(policy)
        exchange = lqray.attach_fsdp(model, method, **SMALL) if method else None
        return model, exchange, torch.optim.AdamW(model.parameters(), lr=0.01)

    model, exchange, optimizer = make()
    losses, counted = [], 0
    for step in range(60):
        if step == stop:
            saved = model.state_dict(), optimizer.state_dict(), exchange.state_dict()
            model, exchange, optimizer = make()
            for part, state in zip((model, optimizer, exchange), saved, strict=True):
                part.load_state_dict(state)
        losses.append(backward(model, rank, step))
        optimizer.step()
        optimizer.zero_grad()
        counted += exchange.volume.payload_bytes if exchange else 0
    coordinates = sum(parameter.numel() for parameter in Transformer().parameters())
    return {
        "losses": losses,
        "handed": sum(handed),
        "counted": counted,
        "float32": 4 * coordinates * 60,
        "levels": exchange.compressor.levels.tolist() if exchange else [],
        "updates": exchange.compressor.updates if exchange else 0,
        "steps": exchange.steps if exchange else 0,
    }


@pytest.mark.processes
def test_a_sharded_transformer_learns_with_gradients_of_three_bits():
    exact, quantized = (run_ranks(trained, 2, method)[0] for method in (None, "alq"))
    assert exact["losses"][-1] < 0.5 * exact["losses"][0]
    assert quantized["losses"][-1] < 0.5 * quantized["losses"][0]
    assert quantized["losses"][-1] != exact["losses"][-1]


@pytest.mark.processes
@pytest.mark.parametrize("half", [False, True])
def test_bytes_on_the_wire_are_those_of_three_bits_and_levels_are_equal(half):
    first, second = run_ranks(trained, 2, "alq", None, half)
    assert first["levels"] == second["levels"]
    assert first["updates"] == 4  # at 0, 5, 25 and 45
    assert first["steps"] == 60
    assert first["handed"] == first["counted"] > 0
    assert 9.5 < first["float32"] / first["handed"] < 32 / 3


@pytest.mark.processes
def test_a_continued_sharded_run_is_equal_to_the_bit():
    whole = run_ranks(trained, 2, "alq")
    for stop in (1, 30):
        assert [one["losses"] for one in run_ranks(trained, 2, "alq", stop)] == [one["losses"] for one in whole]


def with_other_ways(rank: int) -> bool:
    """Accumulation with and without synchronization, sums, and a divisor that no collective here knows."""
    warnings.simplefilter("ignore")
    model = sharded(MixedPrecisionPolicy())
    exchange = lqray.attach_fsdp(model, "qsgd_inf", bits=8, bucket_size=64)
    gradients = []
    for force in (False, True):
        for module in model.modules():
            if hasattr(module, "set_force_sum_reduction_for_comms"):
                module.set_force_sum_reduction_for_comms(force)
        backward(model, rank, 0)
        gradients.append(model.head.weight.grad.full_tensor().clone())
        model.zero_grad()
    torch.testing.assert_close(gradients[0], gradients[1], atol=2e-2, rtol=0)
    for synchronized in (True, False):
        model.set_requires_gradient_sync(synchronized)
        backward(model, rank, 0)
        model.set_requires_gradient_sync(True)
        backward(model, rank, 0)
        doubled = model.head.weight.grad.full_tensor()
        torch.testing.assert_close(doubled, 2 * gradients[0], atol=4e-2, rtol=0)
        model.zero_grad()
    assert exchange.steps == 5
    model.set_force_sum_reduction_for_comms(False)
    model.set_gradient_divide_factor(3.0)
    with pytest.raises(ValueError, match=r"set_force_sum_reduction_for_comms\(True\)"):
        backward(model, rank, 0)
    return True


@pytest.mark.processes
def test_accumulation_sums_and_divisors():
    assert run_ranks(with_other_ways, 2) == [True, True]


def test_a_model_that_is_not_sharded_is_refused():
    with pytest.raises(TypeError, match="of which nothing is sharded"):
        lqray.attach_fsdp(nn.Linear(3, 2), "alq")
