"""A small network on scikit-learn's digits, trained by torchrun with gradients of three bits.

torchrun --nproc-per-node 2 train.py --epochs 8 --checkpoint digits.pt
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lqray

BATCH, ACCUMULATED = 32, 2


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (n, 64) and labels (n,) to train on, and those to test on."""
    digits = load_digits()
    images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[:360], order[360:]
    return images[train], labels[train], images[test], labels[test]


def batches(epoch: int, n: int) -> list[torch.Tensor]:
    """Batches of an epoch for this rank. The order is a function of the epoch: a continued run has the same."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1 + epoch))
    share = order[dist.get_rank() :: dist.get_world_size()]
    return list(share[: n // dist.get_world_size()].split(BATCH))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--checkpoint", type=Path)
    arguments = parser.parse_args()

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    model = DistributedDataParallel(network)
    exchange = lqray.attach(model, "alq", bits=arguments.bits, bucket_size=512)  # the one line of lqray's
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images, labels, test_images, test_labels = data()

    first = 0
    if arguments.checkpoint and arguments.checkpoint.exists():
        saved = torch.load(arguments.checkpoint, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        exchange.load_state_dict(saved["exchange"])
        first = saved["epoch"]

    sent = 0
    for epoch in range(first, arguments.epochs):
        chosen = batches(epoch, len(labels))
        for number in range(0, len(chosen) - ACCUMULATED + 1, ACCUMULATED):
            optimizer.zero_grad()
            with model.no_sync():
                for batch in chosen[number : number + ACCUMULATED - 1]:
                    (nn.functional.cross_entropy(model(images[batch]), labels[batch]) / ACCUMULATED).backward()
            batch = chosen[number + ACCUMULATED - 1]
            (nn.functional.cross_entropy(model(images[batch]), labels[batch]) / ACCUMULATED).backward()
            optimizer.step()
            sent += exchange.volume.bytes_sent
        states = exchange.gather_state()  # on rank 0 those of all ranks
        if dist.get_rank() == 0:
            with torch.no_grad():
                accuracy = (network(test_images).argmax(dim=1) == test_labels).double().mean()
            ratio = exchange.volume.ratio_to_float32
            print(f"epoch {epoch}: accuracy {accuracy:.4f}, {sent} bytes sent, {ratio:.1f} times fewer", flush=True)
            if arguments.checkpoint:
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
                aside = arguments.checkpoint.with_suffix(".new")
                torch.save({**state, "exchange": states, "epoch": epoch + 1}, aside)
                aside.replace(arguments.checkpoint)

    exchange.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
