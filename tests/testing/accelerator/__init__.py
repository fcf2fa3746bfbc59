"""An accelerator of plain memory, for the rules of `lqray.communication.streams`: what is queued on its streams is done
late and in an order that does harm, and memory that was handed back is overwritten as soon as it may be reused. A wait
that is missing, or a tensor that is read on a stream without being recorded there, gives wrong numbers, as on a GPU."""

from tests.testing.accelerator.device import DEVICE, FakeAccelerator
from tests.testing.accelerator.futures import FakeFuture
from tests.testing.accelerator.groups import EchoGroup
from tests.testing.accelerator.machine import ORDERS
from tests.testing.accelerator.training import BUCKETS, DataParallel, exchange_of, train

__all__ = [
    "BUCKETS",
    "DEVICE",
    "ORDERS",
    "DataParallel",
    "EchoGroup",
    "FakeAccelerator",
    "FakeFuture",
    "exchange_of",
    "train",
]
