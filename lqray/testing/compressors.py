"""What holds of every compressor. Every test compares with what the compressor says of itself (`unbiased`,
`deterministic`, `linear`, ...); see `lqray.quantization.Compressor`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lqray.quantization import Compressor, Payload, create
from lqray.quantization.compressor import near_square

_REPEATS = 2000
_SIGMAS = 5.5
_STEPS = 60


def compressor_suite(method: str, **options: Any) -> type:
    """A class of tests of the compressor that `lqray.quantization.create(method, **options)` makes."""
    return type("CompressorSuite", (_CompressorSuite,), {"method": method, "options": options})


class _CompressorSuite:
    method: str
    options: dict[str, Any]

    def made(self) -> Compressor:
        return create(self.method, **self.options)

    def gradient(self, n: int = 4096, seed: int = 0) -> Tensor:
        """Of scales that differ, as those of layers do; a matrix for what wants the shapes of layers."""
        generator = torch.Generator().manual_seed(seed)
        flat = torch.randn(n, generator=generator) * torch.linspace(-2, 1, max(n, 1))[:n].exp()
        return flat.view(near_square(n)) if self.made().layers and n else flat

    def test_every_size_comes_back_finite_and_in_its_own_dtype(self) -> None:
        for n in (0, 1, 31, 32, 33, 1000):
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                x = self.gradient(n).to(dtype)
                compressor = self.made()
                payload = compressor.encode(x, seed=1, offset=2)
                assert payload.n == n
                assert payload.dtype == dtype
                assert payload.buffer.dtype == torch.uint8
                assert payload.buffer.is_contiguous()
                decoded = compressor.decode(payload)
                assert decoded.shape == (n,), f"{n} coordinates come back in the shape {tuple(decoded.shape)}"
                assert decoded.dtype == dtype
                assert decoded.isfinite().all()

    def test_bytes_follow_from_the_shape_alone(self) -> None:
        compressor = self.made()
        x = self.gradient()
        sizes = {
            compressor.encode(each, seed=seed, offset=seed).nbytes
            for seed, each in enumerate((x, torch.zeros_like(x), torch.ones_like(x), 1e6 * self.gradient(seed=1)))
        }
        assert len(sizes) == 1, f"tensors of one shape take {sorted(sizes)} bytes"

    def test_equal_seeds_and_offsets_give_equal_bytes(self) -> None:
        x = self.gradient()
        one = self.made().encode(x, seed=3, offset=4).buffer
        assert torch.equal(one, self.made().encode(x, seed=3, offset=4).buffer)
        if self.made().deterministic:
            assert torch.equal(one, self.made().encode(x, seed=5, offset=4).buffer)

    def test_the_tensor_stays_as_it_is(self) -> None:
        x = self.gradient()
        before = x.clone()
        self.made().encode(x, seed=1, offset=1)
        assert torch.equal(x, before)

    def test_what_is_not_finite_is_not_hidden(self) -> None:
        x = self.gradient(64)
        x.view(-1)[5] = float("nan")
        compressor = self.made()
        if compressor.unbiased and compressor.linear:
            return  # one that sends few coordinates may leave this one out
        assert not compressor.decode(compressor.encode(x, seed=1, offset=1)).isfinite().all()

    def test_the_mean_of_payloads_is_that_of_what_they_decode_to(self) -> None:
        compressor = self.made()
        if getattr(compressor.options, "vote", "mean") != "mean":
            return
        for n in (4096, 1, 0):  # a share of a tensor that many workers share may have none
            payloads = [compressor.encode(self.gradient(n, seed), seed=seed, offset=9) for seed in range(3)]
            rows = torch.stack([payload.buffer for payload in payloads])
            expected = torch.stack([compressor.decode(payload) for payload in payloads]).double().mean(dim=0)
            for found in self._means(compressor, rows, payloads[0]):
                torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)

    @staticmethod
    def _means(compressor: Compressor, rows: Tensor, like: Payload) -> list[Tensor]:
        found = [compressor.decode_mean(rows, like)]
        if compressor.linear:
            payload = compressor.mean_payload(rows, like)
            assert payload.nbytes == like.nbytes
            found.append(compressor.decode(payload))
        return found

    def test_a_payload_of_wrong_length_is_refused(self) -> None:
        compressor = self.made()
        payload = compressor.encode(self.gradient(), seed=1, offset=1)
        for wrong in (payload.buffer[:-1], torch.cat([payload.buffer, payload.buffer[:4]])):
            try:
                compressor.decode(replace(payload, buffer=wrong.clone()))
            except ValueError:
                continue
            raise AssertionError(f"a payload of {wrong.numel()} bytes was decoded; {payload.nbytes} are right")

    def test_unbiased_means_unbiased(self) -> None:
        """Each of 64 coordinates within 5.5 standard errors of itself, and Bernstein's allowance for rare events."""
        compressor = self.made()
        if not compressor.unbiased:
            return
        x = self.gradient(64)
        draws = [compressor.decode(compressor.encode(x, seed=seed, offset=seed)) for seed in range(_REPEATS)]
        decoded = torch.stack(draws).double()
        error = (decoded.mean(dim=0) - x.double().view(-1)).abs()
        most = (decoded - x.double().view(-1)).abs().amax(dim=0)
        allowed = _SIGMAS * decoded.std(dim=0) / _REPEATS**0.5 + 12 * most / _REPEATS + 1e-6
        assert (error <= allowed).all(), f"off by up to {float((error / allowed).max()):.1f} of what is allowed"

    def test_error_feedback_stays_bounded_where_it_is_allowed(self) -> None:
        compressor = self.made()
        if compressor.why_no_contraction() or compressor.adapts:
            return
        held = torch.zeros(1024)
        sizes = []
        for step in range(_STEPS):
            x = self.gradient(1024, seed=step)
            corrected = x.reshape(-1) + held
            payload = compressor.encode(corrected.view(x.shape), seed=step, offset=step)
            held = corrected - compressor.decode(payload)
            sizes.append(float(held.norm() / x.norm()))
        assert max(sizes) < 1000, f"residuals grow to {max(sizes):.3g} gradients in {_STEPS} steps"

    def test_scaling_brings_it_no_farther(self) -> None:
        compressor = self.made()
        x = self.gradient()
        payload = compressor.encode(x, seed=1, offset=1)
        decoded, flat = compressor.decode(payload), x.reshape(-1)
        try:
            scaled = compressor.decode(compressor.rescaled(payload, flat, decoded))
        except TypeError:
            return
        assert float((scaled - flat).norm()) <= float((decoded - flat).norm()) * (1 + 1e-5)

    def test_what_adapts_is_all_in_parameters_and_state(self) -> None:
        one, other, resumed = self.made(), self.made(), self.made()
        one.observe(self.gradient(16384))
        resumed.load_state_dict(one.state_dict())
        one.update_levels()
        resumed.update_levels()
        other.adopt(one.parameters())
        x = self.gradient(seed=7)
        expected = one.encode(x, seed=1, offset=1).buffer
        for each in (other, resumed):
            assert each.fingerprint() == one.fingerprint()
            assert torch.equal(each.encode(x, seed=1, offset=1).buffer, expected)
        assert one.parameters().shape == self.made().parameters().shape
