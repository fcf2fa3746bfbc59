"""`exchange.rounding: correlated`, and phases of one stream: workers round together, whoever shares a process."""

import pytest
import torch
import torch.distributed as dist

import lqray
from lqray.communication import GradientExchange
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.experiment.schema import Trial
from lqray.experiment.seeding import derive_seed
from lqray.quantization import create
from lqray.quantization.place import SHARED_SEED, Place
from lqray.training.wires import connect
from tests.testing.ranks import run_ranks

pytestmark = pytest.mark.processes
WORKERS = 4
N = 8192
METHODS = ("qsgd_inf", "alq", "dither", "slopes")
REDUCTIONS = ("all_gather", "scatter_reduce")
FORMATS = {"int8": (127.0, 1.0), "mxfp8": (448.0, 32.0), "mxfp4": (6.0, 2.0)}
"""Their largest number, and the gap below it."""
TRIAL = {
    "data": {"name": "digits"},
    "model": {"name": "mlp"},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"iterations": 1, "batch_size": 1},
    "quantizer": {"method": "qsgd"},
    "workers": 2,
}


def gradient(step: int = 0) -> torch.Tensor:
    """The same for all workers, of coordinates that are uniform in [-1, 1]."""
    x = torch.rand(N, generator=torch.Generator().manual_seed(step)) * 2 - 1
    x[0] = 1
    return x


def make(method: str, here: int, group=None, shared: int = SHARED_SEED, **options) -> GradientExchange:
    group = group or dist.group.WORLD
    first = group.rank() * here
    seeds = [derive_seed(1, "rounding", worker) for worker in range(first, first + here)]
    compressor = create(method, bits=1 if method == "qsgd_inf" else 3, bucket_size=1024)
    return GradientExchange(compressor, ExchangeOptions(**options), group, seeds, shared)


def errors(rank: int, method: str, here: int, **options) -> tuple[list[bytes], float]:
    """The means of two steps, and the squared error of the first."""
    torch.set_num_threads(1)
    exchange = make(method, here, **options)
    found = []
    for step in range(2):
        exchange.begin_step(step)
        found.append(exchange.exchange([gradient()] * here, 0).wait())
    exchange.close()
    return [mean.numpy().tobytes() for mean in found], float((found[0] - gradient()).double().square().mean())


def everything(rank: int, workers: int) -> dict:
    here = workers // dist.get_world_size()
    return {
        (method, reduction, rounding): errors(rank, method, here, reduction=reduction, rounding=rounding)
        for method in METHODS
        for reduction in REDUCTIONS
        for rounding in ("independent", "correlated")
    }


def test_errors_of_workers_that_agree_cancel_however_many_share_a_process():
    alone, *others = (run_ranks(everything, world, WORKERS) for world in (4, 2, 1))
    for ranks in (alone, *others):
        for own in ranks:
            for key, (means, _) in own.items():
                assert means == alone[0][key][0], key
                assert means[0] != means[1], key
    error = {key: value[1] for key, value in alone[0].items()}
    # One bit, f uniform, a gap of 2: g^2/96 against g^2/24; the second rounding of scatter_reduce adds (2/255)^2/6.
    for reduction in REDUCTIONS:
        assert error["qsgd_inf", reduction, "independent"] == pytest.approx(4 / 24, rel=0.05)
        assert error["qsgd_inf", reduction, "correlated"] == pytest.approx(4 / 96, rel=0.05)
        assert error["alq", reduction, "correlated"] < 0.5 * error["alq", reduction, "independent"]
        for method in ("dither", "slopes"):  # which always round together
            assert error[method, reduction, "correlated"] == error[method, reduction, "independent"]
    assert error["dither", "all_gather", "independent"] == pytest.approx((2 / 7 / 4) ** 2 / 12, rel=0.05)


def of_formats(rank: int, workers: int) -> dict:
    """By format and rounding: the mean, and its squared error over that of a gap, of numbers between the two largest of
    the format."""
    torch.set_num_threads(1)
    here, found = workers // dist.get_world_size(), {}
    seeds = [derive_seed(1, "rounding", worker) for worker in range(rank * here, (rank + 1) * here)]
    for method, (largest, gap) in FORMATS.items():
        x = largest - gap * torch.rand(N, generator=torch.Generator().manual_seed(1))
        x[::32] = largest
        for rounding in ("independent", "correlated"):
            options = ExchangeOptions(rounding=rounding)
            exchange = GradientExchange(create(method, round="stochastic"), options, dist.group.WORLD, seeds)
            exchange.begin_step(0)
            mean = exchange.exchange([x] * here, 0).wait()
            exchange.close()
            error = (mean - x).view(-1, 32)[:, 1:].double()
            found[method, rounding] = mean.numpy().tobytes(), float(error.square().mean()) / gap**2
    return found


def test_formats_of_groups_that_round_at_random_do_so_together():
    """f uniform: g^2/96 against g^2/24."""
    alone, *others = (run_ranks(of_formats, world, WORKERS) for world in (4, 2))
    assert all(own == alone[0] for ranks in (alone, *others) for own in ranks)
    for (_, rounding), (_, error) in alone[0].items():
        assert error == pytest.approx(1 / 96 if rounding == "correlated" else 1 / 24, rel=0.05)


def in_a_subgroup(rank: int) -> list[float]:
    group = dist.new_group([0, 2])
    if rank == 1:
        return []
    found = []
    for rounding in ("independent", "correlated"):
        exchange = make("qsgd_inf", 1, group, rounding=rounding)
        exchange.begin_step(0)
        mean = exchange.exchange([gradient()], 0).wait()
        exchange.close()
        found.append(float((mean - gradient()).double().square().mean()))
    return found


def test_a_subgroup_counts_its_own_workers():
    """W = 2 and f uniform: g^2/24 against g^2/12."""
    first, none, last = run_ranks(in_a_subgroup, 3)
    assert first == last
    assert none == []
    assert first == [pytest.approx(4 / 12, rel=0.05), pytest.approx(4 / 24, rel=0.05)]


def functional(rank: int) -> list[float]:
    found = []
    for rounding in ("independent", "correlated"):
        for reduction in REDUCTIONS:
            mean = gradient()
            lqray.quantized_all_reduce(
                mean, "qsgd_inf", bits=1, bucket_size=1024, seed=1, reduction=reduction, rounding=rounding
            )
            found.append(float((mean - gradient()).double().square().mean()))
        share = torch.empty(N // 2)
        chosen = {"bits": 1, "bucket_size": 1024, "seed": 1, "rounding": rounding}
        lqray.quantized_reduce_scatter(share, gradient(), "qsgd_inf", **chosen)
        own = gradient().view(2, -1)[rank]
        found.append(float((share - own).double().square().mean()))
    return found


def test_collectives_take_the_option_too():
    for found in run_ranks(functional, 2):
        assert found[:3] == [pytest.approx(4 / 12, rel=0.08)] * 3
        assert found[3:] == [pytest.approx(4 / 24, rel=0.08)] * 3


def resumed(rank: int, method: str, named: bool) -> bool:
    """Whether a step after a restored state is the one that would have come. named: whether the state says with which
    seed ranks draw together; those from before 2026-11-27 do not, and all had one."""
    whole = make(method, 1, shared=7 if named else SHARED_SEED, rounding="correlated")
    for step in range(3):
        whole.begin_step(step)
        whole.exchange([gradient(step)], 0).wait()
        whole.observe({"w": gradient(step)})
        whole.update_levels()
        if step == 1:
            state = whole.state_dict()
    expected = whole.exchange([gradient(9)], 1).wait()
    other = make(method, 1, shared=8, rounding="correlated")
    if not named:
        del state["noise"]
    other.load_state_dict(state)
    other.begin_step(2)
    other.exchange([gradient(2)], 0).wait()
    other.observe({"w": gradient(2)})
    other.update_levels()
    return torch.equal(other.exchange([gradient(9)], 1).wait(), expected)


@pytest.mark.parametrize("method", ["qsgd_inf", "slopes"])
@pytest.mark.parametrize("named", [True, False])
def test_a_resumed_exchange_goes_on_with_the_same_bits(method, named):
    assert run_ranks(resumed, 2, method, named) == [True, True]


def noise_of_trials(rank: int, method: str) -> list[float]:
    """How the errors of trials of seeds 1 and 2 go together, by a training's own exchange and by what others call."""
    errors: dict[str, list[torch.Tensor]] = {"trial": [], "attach": [], "all_reduce": []}
    for seed in (1, 2):
        config = TRIAL | {"seed": seed, "quantizer": {"method": method, "bits": 3, "bucket_size": 1024}}
        model = torch.nn.Linear(N, 1, bias=False)
        with connect(Trial.model_validate(config), model, dist.group.WORLD) as wires:
            wires.exchange.begin_step(0)
            errors["trial"].append(wires.exchange.exchange([gradient()], 0).wait() - gradient())
        attached = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(N, 1, bias=False))
        exchange = lqray.attach(attached, method, bits=3, bucket_size=1024, seed=seed)
        attached(gradient()[None]).sum().backward()
        errors["attach"].append(attached.module.weight.grad[0] - gradient())
        exchange.close()
        mean = gradient()
        lqray.quantized_all_reduce(mean, "dither", bits=3, bucket_size=1024, seed=seed)
        errors["all_reduce"].append(mean - gradient())
    return [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in errors.values()]


@pytest.mark.parametrize("method", ["dither", "slopes"])
def test_trials_that_differ_in_their_seed_alone_share_no_noise(method):
    """Of 8192 coordinates a correlation of independent errors has a standard error of .011."""
    for found in run_ranks(noise_of_trials, 2, method):
        assert max(map(abs, found)) < 0.06


def misled(rank: int) -> str:
    """One rank believes in another seed, and its check says so."""
    exchange = make("dither", 1, shared=rank)
    exchange.begin_step(0)
    try:
        exchange.exchange([gradient()], 0).wait()
    except RuntimeError as error:
        return str(error)
    finally:
        exchange.close()
    return ""


def test_ranks_that_draw_together_by_different_seeds_are_found_out():
    assert all("different levels or of different steps" in said for said in run_ranks(misled, 2))


def test_what_no_place_is_known_of_rounds_as_ever():
    x = gradient()
    for method in ("qsgd_inf", "alq"):
        quantizer = create(method, bucket_size=1024)
        plain = quantizer.encode(x, seed=3, offset=4).buffer
        for place in (Place(2, 4), Place(0, 1, correlated=True)):
            assert torch.equal(quantizer.encode_at(x, place, seed=3, offset=4).buffer, plain)
        together = quantizer.encode_at(x, Place(2, 4, correlated=True), seed=3, offset=4)
        assert not torch.equal(together.buffer, plain)
        assert together.nbytes == plain.numel()


def test_a_trial_says_how_it_rounds_only_where_it_is_not_the_default():
    ids = {
        rounding: Trial.model_validate(TRIAL | {"exchange": exchange}).id
        for rounding, exchange in (
            ("none", {}),
            ("independent", {"rounding": "independent"}),
            ("correlated", {"rounding": "correlated"}),
        )
    }
    assert ids["none"] == ids["independent"] != ids["correlated"]
