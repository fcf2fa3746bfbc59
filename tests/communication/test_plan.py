"""Plans of compressors: every coordinate is encoded with its parameter's own bits and levels, whatever it shares a DDP
bucket with."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lqray
from lqray.communication import GradientExchange, NoContractionError, decide
from lqray.communication.checks.replicas import checksum
from lqray.communication.numbering import layer_offset, offset_of
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.experiment.seeding import derive_seed
from lqray.quantization import Quantizer, create
from lqray.quantization.fitting import histogram_fit
from lqray.quantization.methods import Method, uniform
from lqray.quantization.place import Place
from lqray.quantization.plan import CompressorPlan
from lqray.testing import compressor_suite
from tests.testing.exchanges import batch, network
from tests.testing.ranks import run_ranks

BITS = {"0.weight": 2, "*.bias": 8, "default": 3}
"""Of the network: 1,000 coordinates at 2 bits, 53 at 8 (50 and 3), 150 at 3."""
SMALL = {"bucket_size": 64, "update_at": (0, 3), "update_every": 4}


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def options_of(method: str) -> dict:
    return SMALL if method in ("alq_inf", "optimal_inf", "slopes") else {"bucket_size": 64}


class Run:
    """Workers of a rank that train the network over an exchange, from step to step."""

    def __init__(self, rank: int, workers: int, method: str, bits=BITS, cap: float = 25.0, levels=None, **exchange):
        self.workers = range(rank * workers, (rank + 1) * workers)
        own = {"levels": levels} | {"levels_from": 2} if levels else {}
        compressor = create(method, bits=bits, **options_of(method), **own)
        seeds = [derive_seed(1, "rounding", worker) for worker in self.workers]
        self.exchange = GradientExchange(compressor, ExchangeOptions(**exchange), dist.group.WORLD, seeds)
        self.model = DistributedDataParallel(network(), bucket_cap_mb=cap)
        self.exchange.attach(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)

    def step(self, step: int, measure: bool = False) -> int:
        self.exchange.begin_step(step, measure=measure)
        self.optimizer.zero_grad()
        for worker in self.workers:
            images, labels = batch(worker, step)
            if worker == self.workers[-1]:
                nn.functional.cross_entropy(self.model(images), labels).backward()
                continue
            with self.model.no_sync():
                nn.functional.cross_entropy(self.model(images), labels).backward()
            self.exchange.set_aside()
        self.exchange.update_levels()
        self.optimizer.step()
        return checksum(self.model.module)


def train(rank: int, workers: int, method: str, steps: int = 10, **options) -> dict:
    run = Run(rank, workers, method, **options)
    sums = [run.step(step, measure=step == steps - 1) for step in range(steps)]
    run.exchange.close()
    volume = run.exchange.volume
    return {
        "sums": sums,
        "levels": run.exchange.compressor.fingerprint().hex(),
        "bytes": (volume.coordinates, volume.payload_bytes, volume.bytes_sent),
        "nmse": run.exchange.nmse,
        "telemetry": run.exchange.compressor.telemetry(),
    }


# Buckets of 64: a norm of 4 bytes each, and 4 bytes for each 32 codes and bit.
AT_2, AT_8, AT_3 = 4 * 16 + 8 * 32, 4 + 32 * 2, 4 * 3 + 12 * 5
BY_LAYER = (4 + 32 * 2) + (4 + 32 * 1)
# Of two parts each, 512 + 488, 0 + 53, 64 + 86, the means in 8 bits; the worker with more has 512 (or 488), 53, 64.
ROW = (32 + 32 * 16) + (4 + 32 * 2) + (4 + 32 * 2) + 4
KINDS = {
    "levels": ("qsgd_inf", {}, AT_2 + AT_8 + AT_3 + 4),
    "levels by layer": ("qsgd_inf", {"buckets": "layer"}, AT_2 + BY_LAYER + AT_3 + 4),
    "skipped": ("qsgd_inf", {"skip": ["0.bias"]}, AT_2 + (4 + 32) + AT_3 + 4 + 4 * 50),
    "scatter_reduce": ("qsgd_inf", {"reduction": "scatter_reduce"}, AT_2 + AT_8 + AT_3 + ROW),
    "fed back": ("alq_inf", {"error_feedback": True}, AT_2 + AT_8 + AT_3 + 4),
    "slopes": ("slopes", {"error_feedback": "scaled"}, AT_2 + AT_8 + AT_3 + 3 * 4 + 4),
    # 8 bytes of seed, then 4 bytes of scale and 8 bytes a bit for each block of 64
    # 0.weight and 2.weight have two whole buckets of 64, the others share
    "levels by parameter": ("alq_inf", {"bits": 3, "levels": "layer"}, 4 * 16 + 12 * 32 + (4 + 12 * 2) + AT_3 + 4),
    "both": ("slopes", {"levels": "layer", "reduction": "scatter_reduce"}, AT_2 + AT_8 + AT_3 + 4 * 2 * 3 + ROW),
    "eden": ("eden", {}, 3 * 8 + 16 * (4 + 8 * 2) + (4 + 8 * 8) + 3 * (4 + 8 * 3) + 4),
}


def every_kind(rank: int, workers: int) -> dict:
    torch.set_num_threads(1)
    return {kind: train(rank, workers, method, **options) for kind, (method, options, _) in KINDS.items()}


@pytest.mark.processes
def test_replicas_are_equal_bytes_are_those_of_each_parameters_bits_and_workers_may_share_a_process():
    first, second = run_ranks(every_kind, 2, 1)
    (together,) = run_ranks(every_kind, 1, 2)
    for kind, (_, _, expected) in KINDS.items():
        found = first[kind]
        assert len(set(found["sums"])) == 10
        assert found["sums"] == second[kind]["sums"], kind
        assert found["levels"] == second[kind]["levels"] == together[kind]["levels"], kind
        assert found["bytes"][:2] == (1203, expected), kind
        if kind != "skipped":  # float sums of an all-reduce have another order
            assert found["sums"] == together[kind]["sums"], kind
        if "reduction" not in KINDS[kind][1] and "skip" not in KINDS[kind][1]:
            assert found["bytes"][2] == expected
        assert 0 < found["nmse"] < 1
    # DDP's order is that of the backward pass: to rank 1 go 53 coordinates at 8 bits, 64 at 3 and 488 at 2.
    assert first["scatter_reduce"]["bytes"][2] == (4 + 32 * 2) + (4 + 12 * 2) + (32 + 8 * 16) + ROW
    fitted = {name for name in first["levels by parameter"]["telemetry"] if name.endswith("/level/1")}
    assert fitted == {f"quantizer/{name}/level/1" for name in ("shared", "layer/0.weight", "layer/2.weight")}
    levels = first["fed back"]["telemetry"]
    assert {name.split("/")[1] for name in levels} == {"2_bits", "8_bits", "3_bits"}
    assert len([name for name in levels if name.startswith("quantizer/8_bits/level/")]) == 256


def by_hand(bits: dict, named: dict[str, torch.Tensor], groups: list[list[str]], seed: int, index: int) -> dict:
    """What each parameter's gradient becomes: groups in the order of their tensors in the DDP bucket."""
    found = {}
    for number, names in enumerate(groups):
        own = Quantizer.create("qsgd_inf", bits=bits[names[0]], bucket_size=64)
        flat = torch.cat([named[name].reshape(-1) for name in names])
        offset = layer_offset(offset_of(0, index), number)
        decoded = own.decode(own.encode(flat, seed=seed, offset=offset))
        found |= dict(zip(names, decoded.split([named[name].numel() for name in names]), strict=True))
    return found


@pytest.mark.parametrize(
    ("options", "groups"),
    [
        ({}, [["0.weight"], ["0.bias", "2.bias"], ["2.weight"]]),
        ({"buckets": "layer"}, [["0.weight"], ["0.bias"], ["2.weight"], ["2.bias"]]),
    ],
)
def test_coordinates_of_a_bucket_are_encoded_with_their_own_bits(group, options, groups):
    run = Run(0, 1, "qsgd_inf", **options)
    images, labels = batch(0, 0)
    with run.model.no_sync():
        nn.functional.cross_entropy(run.model(images), labels).backward()
    named = {name: parameter.grad.clone() for name, parameter in run.model.module.named_parameters()}
    run.model.zero_grad()
    run.exchange.begin_step(0)
    nn.functional.cross_entropy(run.model(images), labels).backward()
    bits = {"0.weight": 2, "0.bias": 8, "2.weight": 3, "2.bias": 8}
    seed = derive_seed(1, "rounding", 0)
    expected = by_hand(bits, named, groups, seed, 0)
    for name, parameter in run.model.module.named_parameters():
        assert torch.equal(parameter.grad.reshape(-1), expected[name]), name


def test_one_number_for_all_is_todays_exchange(group):
    plain, planned = (Run(0, 1, "alq_inf", bits=bits) for bits in (3, {"0.*": 3, "default": 3}))
    assert isinstance(planned.exchange.compressor, CompressorPlan)
    assert not isinstance(plain.exchange.compressor, CompressorPlan)
    assert [plain.step(step) for step in range(8)] == [planned.step(step) for step in range(8)]


def resumed(rank: int, method: str, options: dict) -> tuple[list[int], list[int]]:
    """Sums of a run, and of one that another exchange continues after step 5, between a fit and the next."""
    torch.set_num_threads(1)
    whole = Run(rank, 1, method, **options)
    sums = [whole.step(step) for step in range(6)]
    state = {part: {k: v.clone() for k, v in held.items()} for part, held in whole.exchange.state_dict().items()}
    weights = {key: value.clone() for key, value in whole.model.module.state_dict().items()}
    momenta = [whole.optimizer.state[p]["momentum_buffer"].clone() for p in whole.model.parameters()]
    sums += [whole.step(step) for step in range(6, 14)]
    again = Run(rank, 1, method, **options)
    again.step(0)  # DDP lays out its buckets
    again.exchange.load_state_dict(state)
    again.model.module.load_state_dict(weights)
    for parameter, momentum in zip(again.model.parameters(), momenta, strict=True):
        again.optimizer.state[parameter]["momentum_buffer"] = momentum
    continued = sums[:6] + [again.step(step) for step in range(6, 14)]
    assert again.exchange.compressor.updates == whole.exchange.compressor.updates > 2
    for run in (whole, again):
        run.exchange.close()
    return sums, continued


RESUMED = [
    ("alq_inf", {"levels": "layer", "error_feedback": True}),
    ("alq_inf", {"error_feedback": True}),
    ("slopes", {"reduction": "scatter_reduce", "error_feedback": "scaled", "feedback_stages": "both"}),
]


@pytest.mark.processes
@pytest.mark.parametrize(("method", "options"), RESUMED)
def test_a_checkpoint_continues_to_the_bit(method, options):
    for sums, continued in run_ranks(resumed, 2, method, options):
        assert continued == sums


def test_each_number_of_bits_has_its_own_statistics_levels_and_state(group):
    run = Run(0, 1, "alq_inf")
    for step in range(2):
        run.step(step)
    plan = run.exchange.compressor
    assert list(plan.compressors) == ["2_bits", "8_bits", "3_bits"]
    assert [one.levels.numel() for one in plan.compressors.values()] == [4, 256, 8]
    # Of step 1: the buckets of its own parameters, of the network's only DDP bucket.
    assert [len(one.statistics_table()) for one in plan.compressors.values()] == [16, 1, 3]
    table = plan.statistics_table()
    assert [int((table[:, 0] == number).sum()) for number in range(3)] == [16, 1, 3]
    fresh = create("alq_inf", bits=BITS, **SMALL)
    assert fresh.fingerprint() != plan.fingerprint()
    fresh.load_state_dict(plan.state_dict())
    assert fresh.fingerprint() == plan.fingerprint()
    np.testing.assert_array_equal(fresh.statistics_table(), table)
    with pytest.raises(ValueError, match=r"the compressors 2_bits, 8_bits, 3_bits; allowed: 2_bits, 3_bits\. They"):
        create("alq_inf", bits={"0.weight": 2, "default": 3}, **SMALL).load_state_dict(plan.state_dict())
    for state in ({}, create("alq_inf", bits=3, **SMALL).state_dict()):
        with pytest.raises(ValueError, match="allowed: 2_bits, 8_bits, 3_bits"):
            fresh.load_state_dict(state)


def test_levels_of_a_parameter_are_those_that_it_alone_would_be_fitted_to(group):
    """At the same iterations, to its own gradients; in a tensor of its own, by the same rounding noise."""
    run = Run(0, 1, "optimal_inf", bits={"2.*": 2, "default": 3}, levels="layer")
    alone = {
        name: Quantizer.create("optimal_inf", bits=bits, **SMALL) for name, bits in (("0.weight", 3), ("2.weight", 2))
    }
    seen = []
    for step in range(5):
        run.exchange.begin_step(step)
        run.optimizer.zero_grad()
        with run.model.no_sync():
            nn.functional.cross_entropy(run.model(batch(0, step)[0]), batch(0, step)[1]).backward()
        seen.append({name: p.grad.clone() for name, p in run.model.module.named_parameters()})
        run.optimizer.zero_grad()
        nn.functional.cross_entropy(run.model(batch(0, step)[0]), batch(0, step)[1]).backward()
        for name, own in alone.items():
            own.observe(seen[-1][name])
            if step in (0, 3):
                own.update_levels()
        assert run.exchange.update_levels() == (step in (0, 3))
        run.optimizer.step()
    plan = run.exchange.compressor
    assert list(plan.compressors) == ["2_bits", "3_bits", "layer/0.weight", "layer/2.weight"]
    for name, own in alone.items():
        assert torch.equal(plan.of_parameter(name).levels, own.levels), name
        assert plan.compressors[f"layer/{name}"] is plan.of_parameter(name)
    assert plan.of_parameter("0.bias") is plan.compressors["3_bits"]
    assert plan.of_parameter("2.bias") is plan.compressors["2_bits"]
    assert not torch.equal(plan.of_parameter("0.weight").levels, plan.compressors["3_bits"].levels)


def test_levels_are_shared_where_layers_are_small_and_by_default(group):
    plain = Run(0, 1, "alq_inf", bits=3).exchange.compressor
    assert not isinstance(plain, CompressorPlan)
    few = create("alq_inf", bits=3, bucket_size=64, levels="layer", levels_from=16)
    assert list(few.compressors) == ["shared"]
    few.bind_to({"a": 1024, "b": 1023, "shared": 5000})
    assert list(few.compressors) == ["shared", "layer/a", "layer/shared"]
    assert few.of_parameter("b") is few.compressors["shared"]
    numbers = [few.of_parameter(name).number for name in ("b", "a", "shared")]
    assert numbers == [0, 1, 2]
    bound = few.of_parameter("a")
    few.bind_to({"a": 1024, "b": 1023, "shared": 5000})
    assert few.of_parameter("a") is bound
    with pytest.raises(ValueError, match="They differ in layer/a, layer/shared: give it to an exchange of the same"):
        create("alq_inf", bits=3, bucket_size=64, levels="layer").load_state_dict(few.state_dict())
    with pytest.raises(ValueError, match="levels_from=0: Input should be greater than or equal to 1"):
        lqray.attach(DistributedDataParallel(network()), "alq", levels="layer", levels_from=0)
    with pytest.raises(ValueError, match="alq_inf encodes each parameter by its name.*shared levels"):
        lqray.quantized_all_reduce(torch.ones(100), "alq_inf", levels="layer")


def test_a_frozen_or_skipped_parameter_has_no_levels_of_its_own(group):
    model = network()
    model[2].weight.requires_grad_(False)
    exchange = lqray.attach(
        DistributedDataParallel(model), "alq_inf", levels="layer", levels_from=1, skip=["0.weight"], bucket_size=32
    )
    assert list(exchange.compressor.compressors) == ["shared", "layer/0.bias"]
    exchange.close()


def test_a_compressor_whose_parameters_had_no_gradient_is_not_fed_back_before_it_is_fitted(group):
    """What unfitted levels lose would be kept."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 64), nn.Linear(8, 64)

        def forward(self, x, late):
            return self.one(x).square().sum() + late * self.two(x).square().sum()

    compressor = create("alq_inf", bits={"two.*": 2, "default": 3}, bucket_size=64, update_at=(0, 3), samples=1)
    exchange = GradientExchange(compressor, ExchangeOptions(error_feedback=True), group, [1])
    model = DistributedDataParallel(Two())
    exchange.attach(model)
    kept = []
    for step in range(5):
        exchange.begin_step(step)
        model.zero_grad()
        model(torch.randn(4, 8), float(step > 1)).backward()
        exchange.update_levels()
        held = exchange.state_dict()["residuals"]
        kept.append(
            [bool(held[f"0/{name}.weight"].any()) if f"0/{name}.weight" in held else False for name in ("one", "two")]
        )
    assert kept == [[False, False], [True, False], [True, False], [True, False], [True, True]]


def test_extra_gradients_are_grouped_as_those_that_are_sent(group):
    run = Run(0, 1, "qsgd_inf", skip=["2.weight"])
    gradients = {name: torch.randn(p.shape) for name, p in run.model.module.named_parameters()}
    exact = run.exchange.quantized_part(gradients)
    expected = torch.cat([gradients[name].reshape(-1) for name in ("0.weight", "0.bias", "2.bias")])
    assert torch.equal(exact, expected)
    rounded = run.exchange.rounded(gradients, seed=1, offset=2)
    errors = (rounded - exact).split([1000, 53])
    assert [float(error.abs().max()) > 0.1 for error in errors] == [True, False]  # of 2 and of 8 bits
    alone = Quantizer.create("qsgd_inf", bits=2, bucket_size=64)
    payload = alone.encode_at(gradients["0.weight"], Place(), seed=1, offset=2)
    assert torch.equal(rounded[:1000], alone.decode(payload))


def test_a_pattern_that_no_parameter_has_is_an_error(group):
    for bits, message in [
        (
            {"1.*": 2, "default": 3},
            "quantizer.bits: no parameter is called '1.*'; allowed: default, or a pattern of "
            "names, which here are 0.weight, 0.bias, 2.weight, 2.bias",
        ),
        ({"0.*": 2, "0.bias": 4, "default": 3}, "every parameter that fits '0.bias' fits a pattern before it"),
    ]:
        with pytest.raises(ValueError, match=message.replace("*", r"\*")):
            lqray.attach(DistributedDataParallel(network()), "eden", bits=bits)
    lqray.attach(
        DistributedDataParallel(network()), "eden", bits={"0.bias": 2, "0.*": 4, "2.*": 5, "default": 3}
    ).close()


def test_what_has_no_names_takes_no_bits_by_parameter(group):
    with pytest.raises(ValueError, match="quantized_all_reduce: eden encodes each parameter by its name"):
        lqray.quantized_all_reduce(torch.ones(100), "eden", bits=BITS)
    with pytest.raises(ValueError, match=r"attach: bits\.fc=9: Input should be less than or equal to 8"):
        lqray.attach(DistributedDataParallel(network()), "eden", bits={"fc": 9, "default": 3})


def test_error_feedback_is_refused_by_the_number_of_bits_that_cannot_contract(group):
    with pytest.raises(NoContractionError, match=r"qsgd_inf at 0\.\*: 1, default: 3 bits.*error_feedback: scaled"):
        Run(0, 1, "qsgd_inf", bits={"0.*": 1, "default": 3}, error_feedback=True)


def test_what_a_plan_says_of_itself_holds_for_all_of_it():
    """The largest magnitude of one bit's error does not contract; one bit has no levels to fit."""
    plan = create("alq_inf", bits={"a": 1, "default": 3}, **SMALL)
    assert [one.bounded for one in plan.compressors.values()] == [False, True]
    assert not plan.bounded
    assert [one.adapts for one in plan.compressors.values()] == [False, True]
    assert plan.adapts
    assert create("alq_inf", bits={"a": 2, "default": 3}, **SMALL).bounded
    assert not plan.fitted
    plan.of_parameter("b").observe(torch.randn(640))
    plan.update_levels()
    assert plan.fitted


def test_bypass_measures_every_compressor(group):
    sizes = {name: p.numel() for name, p in network().named_parameters()}
    encoded = []
    plan = create("qsgd_inf", bits=BITS, bucket_size=64)
    for one in plan.compressors.values():

        def encode(x, *, seed, offset, bits=one.coding.bits, original=one.encode):
            encoded.append((bits, x.numel()))
            return original(x, seed=seed, offset=offset)

        one.encode = encode
    decision = decide(plan, sizes, group, torch.device("cpu"))
    assert set(encoded) == {(2, 1000), (8, 53), (3, 150)}
    assert decision.encode_seconds > 0


OWN = Method(norm="linf", initial_levels=uniform)
OWN_THAT_ADAPTS = Method(norm="linf", initial_levels=uniform, fit=histogram_fit())


def test_a_method_of_ones_own_takes_bits_and_levels_by_parameter():
    here = f"{__name__}:OWN"
    plan = create(here, bits=BITS, bucket_size=64)
    assert {name: one.coding.bits for name, one in plan.compressors.items()} == {"2_bits": 2, "8_bits": 8, "3_bits": 3}
    plan = create(f"{here}_THAT_ADAPTS", bits={"a": 2, "default": 3}, bucket_size=64, levels="layer", levels_from=1)
    plan.bind_to({"a": 64, "b": 64, "c": 63})
    assert {name: one.coding.bits for name, one in plan.compressors.items()} == {
        "2_bits": 2,
        "3_bits": 3,
        "layer/a": 2,
        "layer/b": 3,
    }


def test_metrics_have_names_that_a_store_takes():
    plan = create("alq_inf", bits=1, bucket_size=8, levels="layer")
    plan.bind_to({"heads.a (b)": 32})
    assert "quantizer/layer/heads.a__b_/level/0" in plan.telemetry()


class TestContract(compressor_suite("eden", bits={"fc.*": 8, "default": 2.5}, bucket_size=64)):
    """Without names all is encoded by `default`."""
