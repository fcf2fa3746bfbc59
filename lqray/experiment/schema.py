"""What a trial is: every choice that can change its result, fully resolved and validated."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Discriminator, Field, Tag, TypeAdapter, create_model, model_validator
from pydantic_core import PydanticCustomError

from lqray.experiment import names, parts
from lqray.experiment.feedback import REMEDY, collision_problem, contraction_problem, described
from lqray.experiment.headline import task_of_data
from lqray.experiment.identity import trial_id
from lqray.experiment.options.data import DATA, DataOptions, OwnDataOptions
from lqray.experiment.options.exchange import SELDOM, ExchangeOptions, without_effect
from lqray.experiment.options.metrics import Metrics, metric_name
from lqray.experiment.options.model import MODEL, ModelOptions, OwnModelOptions
from lqray.experiment.options.optimizer import OPTIMIZER, AdamOptions, DecayOptions, OwnOptimizerOptions
from lqray.experiment.options.own import OwnPart
from lqray.experiment.options.quantizer import (
    QUANTIZER,
    CompressorOptions,
    FixedLevelsOptions,
    OwnMethodOptions,
    PostLocalSgdOptions,
)
from lqray.experiment.options.resources import Resources
from lqray.experiment.options.schedule import ScheduleOptions
from lqray.experiment.options.search import Search
from lqray.experiment.options.section import MOST_SEED, MOST_WORKERS, Section, Variant
from lqray.experiment.options.storage import Storage
from lqray.experiment.options.task import TASK, ClassificationOptions, TaskOptions
from lqray.experiment.options.telemetry import TelemetryOptions
from lqray.experiment.options.tracking import Tracking

__all__ = ["Resources", "Search", "Storage", "Tracking", "Trial"]


def _variants(
    table: Mapping[str, type[Variant]],
    known: Iterable[str],
    plain: type[Variant],
    own: type[OwnPart] | None = None,
) -> Any:
    """The union of the option classes of `known`, told apart by each class's selector key. own: of the parts of a
    user's own, which are known by reference."""
    classes: dict[str, type[Variant]] = {name: table.get(name, plain) for name in known}
    if own is not None:
        classes[parts.OWN] = own
    keys = frozenset(key for cls in classes.values() for key in cls.model_fields)
    selector = plain.selector
    members = []
    for name, cls in classes.items():
        member = create_model(cls.__name__, __base__=cls, __doc__=cls.__doc__, __module__=cls.__module__)
        setattr(member, "siblings", keys - frozenset(cls.model_fields))  # noqa: B010
        members.append(Annotated[member, Tag(name)])

    def choose(value: Any) -> Any:
        name = value.get(selector) if isinstance(value, dict) else getattr(value, selector, None)
        return parts.OWN if own is not None and parts.is_own(own.kind, name) else name

    return Annotated[Union[tuple(members)], Discriminator(choose)]  # noqa: UP007


if TYPE_CHECKING:
    from lqray.experiment.options.data import DataOptions as _Data
    from lqray.experiment.options.model import ModelOptions as _Model
    from lqray.experiment.options.optimizer import OptimizerOptions as _Optimizer
    from lqray.experiment.options.quantizer import QuantizerOptions as _Quantizer
    from lqray.experiment.options.task import TaskOptions as _Task
else:
    _Data = _variants(DATA, names.datasets(), DataOptions, OwnDataOptions)
    _Model = _variants(MODEL, names.models(), ModelOptions, OwnModelOptions)
    _Optimizer = _variants(OPTIMIZER, names.optimizers(), DecayOptions, OwnOptimizerOptions)
    _Task = _variants(TASK, names.tasks(), TaskOptions)
    _Quantizer = _variants(QUANTIZER, names.methods(), FixedLevelsOptions, OwnMethodOptions)


class Trial(Section):
    """One training run, fully resolved. `Trial.model_validate(mapping)` builds it from plain data and may raise
    pydantic.ValidationError; `lqray.experiment.grid` turns that into an error with file and line.

    `id` is a stable hash of every choice that can change the result (see `identity`). `sgd` is the one-worker run by
    definition: its `workers` is 1 whatever the file's base says.
    """

    data: _Data
    model: _Model
    optimizer: _Optimizer
    schedule: ScheduleOptions
    workers: int = Field(default=1, ge=1, le=MOST_WORKERS)
    """K of the algorithm: gradients computed, encoded and averaged at each step."""
    exchange: ExchangeOptions = ExchangeOptions()
    quantizer: _Quantizer
    telemetry: TelemetryOptions = TelemetryOptions()
    seed: int = Field(default=1, ge=0, le=MOST_SEED)
    """Seed of initial weights, data order and stochastic rounding; methods with equal seeds see equal batches."""
    metrics: Metrics = ()
    """Functions of a user's own, `module:attribute`, whose means over the test set are recorded as test/NAME."""
    task: _Task = ClassificationOptions()

    @model_validator(mode="before")
    @classmethod
    def _task_is_that_of_the_data(cls, values: Any) -> Any:
        task = values.get("task") if isinstance(values, dict) else values
        if isinstance(values, dict) and "task" not in values:
            return {**values, "task": _plain_task(task_of_data(_name_of_data(values)))}
        if not isinstance(task, dict) or "name" in task:
            return values
        return {**values, "task": {"name": task_of_data(_name_of_data(values)), **task}}

    @model_validator(mode="before")
    @classmethod
    def _sgd_has_one_worker(cls, values: Any) -> Any:
        quantizer = values.get("quantizer") if isinstance(values, dict) else None
        method = quantizer.get("method") if isinstance(quantizer, dict) else getattr(quantizer, "method", None)
        if method == "sgd":
            return {**values, "workers": 1}
        return values

    @model_validator(mode="after")
    def _levels_differ_in_float32(self) -> Trial:
        if problem := collision_problem(self.quantizer):
            found, allowed = problem
            raise PydanticCustomError(
                "combination", "{allowed}", {"key": "quantizer.multiplier", "found": found, "allowed": allowed}
            )
        return self

    @model_validator(mode="after")
    def _feedback_is_scaled_where_it_can_be(self) -> Trial:
        chosen = self.quantizer
        if self.exchange.error_feedback != "scaled" or not isinstance(chosen, CompressorOptions):
            return self
        if why := chosen.why_not_scaled():
            allowed = f"error_feedback: true or false, or quantizer.inner: eden; {why}"
            found = f"scaled with {described(chosen)}"
            raise PydanticCustomError(
                "combination", "{allowed}", {"key": "exchange.error_feedback", "found": found, "allowed": allowed}
            )
        return self

    @model_validator(mode="after")
    def _error_feedback_needs_a_contraction(self) -> Trial:
        if self.exchange.error_feedback is not True or self.exchange.trajectory == "full_precision":
            return self
        if why := contraction_problem(self.quantizer):
            raise PydanticCustomError(
                "combination",
                "{allowed}",
                {
                    "key": "exchange.error_feedback",
                    "found": f"true with {described(self.quantizer)}, which is no contraction: {why}",
                    "allowed": REMEDY,
                },
            )
        return self

    @model_validator(mode="after")
    def _headline_is_measured(self) -> Trial:
        own = tuple(map(metric_name, self.metrics))
        known = [f"test/{name}" for name in (*self.task.METRICS, *own)]
        headline, told = self.task.headline, self.task.higher_is_better
        problem, wanted = None, task_of_data(self.data.name)
        if clash := sorted(set(own) & set(self.task.METRICS)):
            allowed = f"functions of other names than {self.task.name} has: {', '.join(self.task.METRICS)}"
            problem = "metrics", clash[0], allowed
        elif self.task.name != wanted and not isinstance(self.data, OwnDataOptions):
            problem = "task.name", self.task.name, f"{wanted}, which is what {self.data.name} is for; or other data"
        elif headline is not None and headline not in known:
            problem = "task.headline", headline, f"what is measured of the test set: {', '.join(known)}"
        elif headline is None and told is not None:
            problem = "task.higher_is_better", json.dumps(told), "null, or task.headline beside it"
        elif headline in known[len(self.task.METRICS) :] and told is None:
            problem = "task.higher_is_better", "null", f"true or false: what is better of {headline}, which is your own"
        return self._without(problem)

    @model_validator(mode="after")
    def _preconditioning_by_the_optimizer_needs_its_moments(self) -> Trial:
        chosen = self.exchange.precondition == "optimizer" and self.exchange.trajectory == "quantized"
        if chosen and not isinstance(self.optimizer, AdamOptions | OwnOptimizerOptions):
            raise PydanticCustomError(
                "combination",
                "{allowed}",
                {
                    "key": "exchange.precondition",
                    "found": f"optimizer with {self.optimizer.name}, which keeps no second moment of every parameter",
                    "allowed": "with adam, adamw, or an optimizer of your own that keeps exp_avg_sq; with any, true",
                },
            )
        return self

    @model_validator(mode="after")
    def _workers_alone_have_no_gradient_in_common(self) -> Trial:
        if self.exchange.every is None:
            return self
        every = f"with exchange.every: {self.exchange.every}, where workers exchange no gradients"
        problem = None
        if self.exchange.precondition == "optimizer":
            allowed = "true, for moments of the differences that the exchange keeps, or false"
            problem = "exchange.precondition", f"optimizer {every}, and each has moments of its own", allowed
        elif getattr(self.quantizer, "sampling", None) == "fresh":
            problem = "quantizer.sampling", f"fresh {every}", "training: levels are fitted to the differences"
        elif self.telemetry.samples:
            problem = "telemetry.samples", f"{self.telemetry.samples} {every}, whose variance it is", "0"
        return self._without(problem)

    @model_validator(mode="after")
    def _torchs_averager_averages_parameters_alone(self) -> Trial:
        if not isinstance(self.quantizer, PostLocalSgdOptions):
            return self
        with_it = "with quantizer.method: post_local_sgd, where torch averages parameters themselves"
        exchange, plain = self.exchange, ExchangeOptions()
        unused = [key for key in SELDOM if getattr(exchange, key) != getattr(plain, key)]
        problem = None
        if exchange.every is None:
            problem = "exchange.every", f"null {with_it}", "a number of steps from one average to the next"
        elif unused:
            problem = f"exchange.{unused[0]}", f"it {with_it}", "full_precision, or any other method, with this option"
        elif exchange.find_unused_parameters:
            allowed = "false: its averager would leave out, on some ranks, what is without a gradient there"
            problem = "exchange.find_unused_parameters", f"true {with_it}", allowed
        elif self.model.dtype != "float32":
            allowed = "float32: its averager would average numbers of 16 bits, and not the optimizer's masters"
            problem = "model.dtype", f"{self.model.dtype} {with_it}", allowed
        return self._without(problem)

    @model_validator(mode="after")
    def _hosts_send_for_their_workers(self) -> Trial:
        if self.exchange.reduction != "hierarchical" or not isinstance(self.quantizer, CompressorOptions):
            return self
        hosts, with_hosts = self.exchange.hosts, "with exchange.reduction: hierarchical, where hosts send their means"
        problem = None
        if self.workers % (hosts or 1) or self.workers < 2:
            found = f"{hosts} for {self.workers} workers" if hosts else f"hierarchical with {self.workers} worker"
            allowed = "a divisor of the workers, from 2 to as many as there are, or null for those they are placed on"
            key = "exchange.hosts" if hosts else "exchange.reduction"
            problem = key, found, allowed if hosts else "with 2 workers or more; of one, all_gather sends nothing"
        elif getattr(self.quantizer, "sampling", None) == "fresh":
            problem = "quantizer.sampling", f"fresh {with_hosts}", "training: levels are fitted to the means of hosts"
        elif self.telemetry.samples:
            problem = "telemetry.samples", f"{self.telemetry.samples} {with_hosts}, and no worker rounds", "0"
        return self._without(problem)

    def _without(self, problem: tuple[str, str, str] | None) -> Trial:
        """The trial itself. problem: (key, found, allowed) of two options that do not go together. Raises
        PydanticCustomError."""
        if problem:
            context = dict(zip(("key", "found", "allowed"), problem, strict=True))
            raise PydanticCustomError("combination", "{allowed}", context)
        return self

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits; equal for equal trials, in any file, in any order of keys."""
        return trial_id(self)

    def config(self) -> dict[str, Any]:
        """The trial as plain nested data (str, int, float, bool, None, list), as written to MLflow and to workers."""
        return self.model_dump(mode="json")

    def flat(self) -> dict[str, Any]:
        """The trial as one level of dotted keys, in schema order: {"data.name": "digits", ...}. What runs of
        before it was there do not have is left out: empty mappings, such as options of a reduction that has none,
        `metrics` where there are none, levels that are shared, a task that is plain classification, how seldom
        gradients are exchanged where it is at every step, what torch's averager has no use for, and of what hosts where
        none sends for its workers."""
        flat = flatten(self.config())
        if self.task == _plain_task("classification"):
            flat = {key: value for key, value in flat.items() if not key.startswith("task.")}
        if flat.get("quantizer.levels") == "shared":
            del flat["quantizer.levels"], flat["quantizer.levels_from"]
        flat = {key: value for key, value in flat.items() if not self.leaves_out(key)}
        return {key: value for key, value in flat.items() if value != {} and (value or key != "metrics")}

    def leaves_out(self, key: str) -> bool:
        """Whether a dotted key is of `exchange` and has no effect beside this trial's other options."""
        section, _, rest = key.partition(".")
        idle = without_effect(self.exchange.every, self.exchange.reduction)
        if self.exchange.every is None:
            idle = ("every", *idle)
        elif isinstance(self.quantizer, PostLocalSgdOptions):
            idle = (*SELDOM, *idle)
        return section == "exchange" and rest.partition(".")[0] in idle

    def params(self) -> dict[str, str]:
        """`flat`, every value as text: words as they are, anything else as JSON. So MLflow keeps them."""
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in self.flat().items()}


def _name_of_data(values: Mapping[str, Any]) -> Any:
    data = values.get("data")
    return data.get("name") if isinstance(data, dict) else getattr(data, "name", None)


@cache
def _plain_task(name: str) -> Any:
    """One instance for all trials that say nothing more of it."""
    return TypeAdapter(_Task).validate_python({"name": name})


def model_options(config: object) -> _Model:
    """The `model` section of a trial from plain data. Raises pydantic.ValidationError."""
    options: _Model = TypeAdapter(_Model).validate_python(config)
    return options


def data_options(config: object) -> _Data:
    """The `data` section of a trial, likewise."""
    options: _Data = TypeAdapter(_Data).validate_python(config)
    return options


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
