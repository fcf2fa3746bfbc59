"""Error feedback: what is fed back stays bounded, or is refused with the reason and the remedy."""

import itertools

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import lqray
from lqray.communication import GradientExchange, NoContractionError
from lqray.experiment.feedback import contraction_problem, why_no_contraction
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.experiment.schema import Trial
from lqray.quantization import Compressor, Payload, Quantizer
from tests.testing.methods import ADAPTIVE, EXCHANGED, LEVELS, REDUCTIONS, SPARSE
from tests.testing.ranks import run_ranks

METHODS = EXCHANGED
N, STEPS = 16_384, 50


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def quantizer_of(method: str, bits: int = 3, bucket_size: int = 8192, **options) -> Quantizer:
    own = {} if method == "terngrad" else {"bits": bits}
    options = {"density": 0.25} | options if method in SPARSE else options
    return Quantizer.create(method, bucket_size=bucket_size, **own, **options)


def gradient_of(kind: str, step: int, n: int = N) -> torch.Tensor:
    """normal: independent from step to step. heavy: with scales that differ by orders of magnitude. spike: one
    coordinate."""
    gradient = torch.randn(n, generator=torch.Generator().manual_seed(step))
    if kind == "heavy":
        return gradient * torch.randn(n, generator=torch.Generator().manual_seed(99)).exp()
    if kind == "spike":
        return torch.nn.functional.one_hot(torch.tensor(step % 7), n).to(torch.float32)
    return gradient


def residual_of(exchange: GradientExchange) -> float:
    held = exchange.state_dict()["residuals"].values()
    return float(torch.cat(list(held)).norm()) if held else 0.0


def fed_back(exchange: GradientExchange, kind: str, steps: int = STEPS, seed: int = 0) -> tuple[list[float], str]:
    """|residual| / |gradient| after every step, and what ended it before the last."""
    found: list[float] = []
    try:
        for step in range(steps):
            exchange.begin_step(step)
            gradient = gradient_of(kind, 1000 * seed + step)
            exchange.exchange([gradient], 0).wait()
            exchange.update_levels()
            found.append(residual_of(exchange) / float(gradient.norm()))
    except NoContractionError as error:
        return found, str(error)
    return found, ""


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("bucket_size", [64, 8192])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_refused_or_stays_bounded(group, method, bucket_size, bits):
    """As the options say, or as measured while training, before the residual is large."""
    quantizer = quantizer_of(method, bits, bucket_size)
    if contraction_problem(quantizer.options):
        with pytest.raises(NoContractionError, match="error_feedback: scaled"):
            GradientExchange(quantizer, ExchangeOptions(error_feedback=True), group, [1])
        return
    for kind in ("normal", "heavy", "spike"):
        quantizer = quantizer_of(method, bits, bucket_size)
        exchange = GradientExchange(quantizer, ExchangeOptions(error_feedback=True), group, [1])
        found, said = fed_back(exchange, kind)
        assert max(found) < 100, (kind, found)
        if said:
            assert "(omega)" in said
            assert "error_feedback: scaled" in said
            assert method in said
        if method in ADAPTIVE:
            assert found[0] == 0  # unfitted levels lose 11 times the gradient at 3 bits


@pytest.mark.parametrize("method", ["qsgd", "nuqsgd", "terngrad"])
def test_what_can_only_grow_is_refused_before_it_starts(group, method):
    quantizer = quantizer_of(method)
    with pytest.raises(NoContractionError, match=r"is no contraction: .*allowed: below 1.*error_feedback: scaled"):
        GradientExchange(quantizer, ExchangeOptions(error_feedback=True), group, [1])


def test_what_turns_out_to_grow_is_refused_within_a_few_steps(group):
    quantizer = quantizer_of("alq", bits=2)
    exchange = GradientExchange(quantizer, ExchangeOptions(error_feedback=True), group, [1])
    found, said = fed_back(exchange, "normal", 12)
    assert len(found) < 8
    assert said.startswith("exchange.error_feedback: true with alq at 2 bits with buckets of 8192: compressing lost ")


@pytest.mark.parametrize("method", METHODS)
def test_scaled_contracts_with_every_method(group, method):
    """Every bucket loses at most what there was, at every step, and on average omega / (1 + omega) of it."""
    for bits, kind in itertools.product((1, 3), ("normal", "heavy", "spike")):
        quantizer = quantizer_of(method, bits)
        exchange = GradientExchange(quantizer, ExchangeOptions(error_feedback="scaled"), group, [1])
        for step in range(12):
            exchange.begin_step(step)
            gradient = gradient_of(kind, step)
            before = [held.clone() for held in exchange.state_dict()["residuals"].values()]
            corrected = gradient + before[0] if before else gradient
            exchange.exchange([gradient], 0).wait()
            exchange.update_levels()
            assert residual_of(exchange) <= float(corrected.norm()) * (1 + 1e-6)


@pytest.mark.parametrize("options", [{}, {"rotation": "hadamard"}, {"tail": "full_precision"}])
def test_what_is_sent_and_what_is_held_add_up(group, options):
    """Bit for bit but for float32 sums, also where buckets are short, rotated or not quantized."""
    exchange = GradientExchange(
        quantizer_of("qsgd", 3, 64, **options), ExchangeOptions(error_feedback="scaled"), group, [1]
    )
    total, sent = torch.zeros(1000, dtype=torch.float64), torch.zeros(1000, dtype=torch.float64)
    for step in range(30):
        exchange.begin_step(step)
        gradient = gradient_of("heavy", step, 1000)
        total += gradient
        sent += exchange.exchange([gradient], 0).wait()
    held = exchange.state_dict()["residuals"]["0/0"]
    torch.testing.assert_close(sent + held, total, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_gradients_are_not_lost_in_half_precision(group, dtype):
    """The sum of what arrives is that of the gradients: residuals are added in float32, not in the gradients' type."""
    exchange = GradientExchange(quantizer_of("qsgd_inf", 2, 64), ExchangeOptions(error_feedback=True), group, [1])
    gradient = torch.cat([torch.ones(1), torch.full((63,), 1e-3)]).to(dtype)
    sent = torch.zeros(64)
    for step in range(400):
        exchange.begin_step(step)
        mean = exchange.exchange([gradient], 0).wait()
        assert mean.dtype == dtype
        sent += mean.to(torch.float32)
    held = exchange.state_dict()["residuals"]["0/0"]
    assert held.dtype == torch.float32
    # What remains is the last cast of the mean, at most half a unit in the last place of 1/3 at a step.
    drift = (sent + held - 400 * gradient.to(torch.float32)).abs().max()
    assert drift < 400 * 0.5 * 2.0**-9


def test_residuals_of_old_checkpoints_are_read(group):
    exchange = GradientExchange(quantizer_of("alq", 3, 64), ExchangeOptions(error_feedback=True), group, [1])
    exchange.begin_step(0)
    exchange.exchange([gradient_of("normal", 0, 100)], 0).wait()
    exchange.update_levels()
    state = exchange.state_dict()
    old = {"quantizer": state["quantizer"], "residuals": {"0/0": torch.ones(100, dtype=torch.bfloat16)}}
    other = GradientExchange(quantizer_of("alq", 3, 64), ExchangeOptions(error_feedback=True), group, [1])
    other.load_state_dict(old)
    assert other.state_dict()["residuals"]["0/0"].dtype == torch.float32
    other.begin_step(1)
    other.exchange([gradient_of("normal", 1, 100)], 0).wait()
    assert not torch.equal(other.state_dict()["residuals"]["0/0"], torch.ones(100))


def test_levels_are_fitted_first_whatever_the_schedule(group):
    exchange = GradientExchange(quantizer_of("alq", update_at=(20,)), ExchangeOptions(error_feedback=True), group, [1])
    exchange.begin_step(0)
    exchange.exchange([torch.zeros(N)], 0).wait()
    exchange.update_levels()  # there is nothing to fit to
    for step in range(1, 5):
        exchange.begin_step(step)
        exchange.exchange([gradient_of("normal", step)], 0).wait()
        assert exchange.update_levels() == (step == 1)
    assert 0 < residual_of(exchange) < 2 * N**0.5


def both_ranks(rank: int) -> dict:
    """Of accepted configurations, the largest ratio, and a checksum of what arrived last."""
    torch.set_num_threads(1)
    found = {}
    for reduction, mode, method in itertools.product(REDUCTIONS, (True, "scaled"), METHODS):
        quantizer = quantizer_of(method)
        # Gradient descent from alq's first levels does not come far enough in one fit: it loses 2.6 times the energy.
        if mode is True and (contraction_problem(quantizer.options) or method in ("alqg", "alqg_n")):
            continue
        options = ExchangeOptions(reduction=reduction, error_feedback=mode)
        exchange = GradientExchange(quantizer, options, dist.group.WORLD, [rank])
        ratios, said = fed_back(exchange, "normal", 20, rank)
        assert not said, (reduction, mode, method, said, ratios)
        exchange.begin_step(100)
        mean = exchange.exchange([gradient_of("normal", 100)], 0).wait()
        found[reduction, mode, method] = max(ratios), float(mean.double().square().sum())
        exchange.close()
    return found


@pytest.mark.processes
def test_residuals_stay_bounded_with_both_reductions():
    first, second = run_ranks(both_ranks, 2)
    assert set(first) == set(second)
    for key, (largest, mean) in first.items():
        assert largest < (25 if key[1] == "scaled" else 3), key
        assert mean == second[key][1], key


def trial_of(feedback, **quantizer) -> Trial:
    return Trial.model_validate(
        {
            "data": {"name": "digits"},
            "model": {"name": "cnn"},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "schedule": {"iterations": 1, "batch_size": 1},
            "exchange": {"error_feedback": feedback},
            "quantizer": quantizer,
        }
    )


@pytest.mark.parametrize("method", LEVELS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_the_table_of_methods_is_that_of_the_methods(method, bits):
    for bucket_size in (1, 2, 64, 128, 8192):
        quantizer = quantizer_of(method, bits, bucket_size)
        own = quantizer.method
        levels = own.initial_levels(quantizer.options).tolist()
        assert contraction_problem(quantizer.options) == why_no_contraction(quantizer.options, own.norm, levels)


def test_ids_stay_as_they_were():
    assert trial_of(True, method="alq").id == "b8a0c4ef93c39eef"
    ids = {trial_of(mode, method="alq").id for mode in (False, True, "scaled")}
    assert len(ids) == 3
    for method in ("qsgd", "nuqsgd", "terngrad"):
        assert trial_of("scaled", method=method).exchange.error_feedback == "scaled"
        assert trial_of(False, method=method).exchange.error_feedback is False
        with pytest.raises(ValueError, match="error_feedback: scaled"):
            trial_of(True, method=method)


@pytest.mark.parametrize("method", ["topk", "signsgd", "qsgd_inf"])
def test_a_moving_average_of_what_was_lost(group, method):
    """e <- decay e + (1 - decay) (h - decoded), and nothing of it after a reset."""
    options = ExchangeOptions(error_feedback=True, feedback_decay=0.75, feedback_reset=3)
    exchange = GradientExchange(quantizer_of(method, 3, 64), options, group, [1])
    held = torch.zeros(1000)
    for step in range(7):
        gradient = gradient_of("normal", step, 1000)
        held = torch.zeros(1000) if step % 3 == 0 else held
        exchange.begin_step(step)
        sent = exchange.exchange([gradient], 0).wait()
        held = 0.75 * held + 0.25 * (gradient + held - sent)
        torch.testing.assert_close(exchange.state_dict()["residuals"]["0/0"], held, rtol=1e-5, atol=1e-5)


def both_stages(rank: int) -> dict:
    """Distance of the sum of what arrived from that of the exact means, with what the second rounding loses fed back
    or not; the same of an exchange that is continued from its state; checksums."""
    torch.set_num_threads(1)
    found = {}
    for stages, continued in (("first", True), ("both", True), ("both", False)):
        options = ExchangeOptions(
            reduction="scatter_reduce", error_feedback=True, feedback_stages=stages, gather_bits=2
        )
        exchange = GradientExchange(quantizer_of("qsgd_inf", 3, 64), options, dist.group.WORLD, [rank])
        exact, arrived = torch.zeros(1000), torch.zeros(1000)
        for step in range(60):
            if step == 30 and continued:
                state = exchange.state_dict()
                exchange.close()
                exchange = GradientExchange(quantizer_of("qsgd_inf", 3, 64), options, dist.group.WORLD, [rank])
                exchange.load_state_dict(state)
            gradient = gradient_of("normal", 7, 1000) + 0.1 * gradient_of("normal", 1000 * rank + step, 1000)
            exchange.begin_step(step)
            arrived += exchange.exchange([gradient], 0).wait()
            dist.all_reduce(gradient)
            exact += gradient / 2
        found[stages, continued] = float((arrived - exact).norm()), float(arrived.double().square().sum())
        exchange.close()
    return found


@pytest.mark.processes
def test_the_second_rounding_is_fed_back_too():
    first, second = run_ranks(both_stages, 2)
    assert first == second
    assert first["both", True] == first["both", False]
    assert first["both", True][0] < 0.5 * first["first", True][0]


def test_one_bit_of_means_cannot_be_fed_back():
    with pytest.raises(ValueError, match="gather_bits of at least 2"):
        ExchangeOptions(feedback_stages="both", gather_bits=1)


class Halves(Compressor):
    """Half of what a layer is, in the layer's own shape, which it keeps in mind."""

    layers = deterministic = True
    seen = ()

    def encode(self, tensor, *, seed, offset):
        self.seen = (*self.seen, tuple(tensor.shape))
        return Payload((0.5 * tensor.reshape(-1)).view(torch.uint8), tensor.numel(), tensor.dtype, offset)

    def decode(self, payload):
        return payload.buffer.clone().view(torch.float32)


def test_a_compressor_without_scaling_is_refused_before_it_starts(group):
    with pytest.raises(NoContractionError, match="cannot be; allowed: error_feedback: true or false"):
        GradientExchange(Halves({}), ExchangeOptions(error_feedback="scaled"), group, [1])


@pytest.mark.parametrize("options", [{}, {"trajectory": "full_precision"}, {"reduction": "scatter_reduce"}])
def test_layers_come_in_their_shapes_and_are_measured_so(group, options):
    compressor = Halves({})
    exchange = GradientExchange(compressor, ExchangeOptions(**options), group, [1])
    model = DistributedDataParallel(torch.nn.Linear(5, 3))
    exchange.attach(model)
    exchange.begin_step(0, measure=True)
    model(torch.ones(2, 5)).sum().backward()
    exchange.close()
    assert set(compressor.seen) == {(3, 5), (3,)}
    assert (exchange.nmse, exchange.bias) == (0.25, 0.5)


def test_flat_tensors_are_not_for_a_compressor_of_layers(group):
    with pytest.raises(ValueError, match="Halves encodes each layer in its own shape"):
        lqray.quantized_all_reduce(torch.ones(4), Halves({}))
