// The operators of rotated blocks for CPU tensors, through torch's stable ABI.
#include "bind_blocks.h"
#include "bind_cpu.h"
#include "eden.h"

namespace lqray::bind {

namespace {

// What widths and begins say of the codes, which a caller of torch.ops.lqray, or the network, may have made up.
void check_blocks_of_widths(const char* op, const Tensor& numbers, const Tensor& widths, const Tensor& begins,
                            const Tensor& centroids, int64_t rows, int64_t n, int64_t block_size, int64_t planes,
                            const Tensor& beside) {
  check_rows_of_blocks(op, numbers, widths, begins, centroids, rows, n, block_size, beside);
  const int64_t blocks = numbers.numel();
  const uint8_t* width = const_bytes_of(widths);
  const int64_t* first = static_cast<const int64_t*>(begins.const_data_ptr());
  bool within = true;
  for (int64_t i = 0; i < blocks; ++i)
    within = within && lies_within(width[i], first[i], planes);
  STD_TORCH_CHECK(within, op, ": blocks' codes lie outside of the ", planes, " planes that there are");
}

cpu::BlockRow row_of(const Tensor& numbers, const Tensor& widths, const Tensor& begins) {
  return cpu::BlockRow{static_cast<const float*>(numbers.const_data_ptr()), const_bytes_of(widths),
                       static_cast<const int64_t*>(begins.const_data_ptr())};
}

cpu::Centroids centroids_of(const Tensor& centroids) {
  const Tensor flat = dense(centroids);
  return cpu::make_centroids(static_cast<const float*>(flat.const_data_ptr()));
}

std::tuple<Tensor, Tensor> eden_encode(const Tensor& x, const Tensor& factors, const Tensor& widths,
                                       const Tensor& begins, const Tensor& centroids, int64_t planes,
                                       int64_t block_size, int64_t seed, int64_t offset) {
  check_input("eden_encode", x, block_size);
  check_number_of_planes(planes);
  const Tensor flat = dense(x), numbers = dense(factors), wide = dense(widths), first = dense(begins);
  const cpu::Input input = input_of("eden_encode", flat);
  check_blocks_of_widths("eden_encode", numbers, wide, first, centroids, 1, input.n, block_size, planes, x);
  const cpu::Centroids table = centroids_of(centroids);
  const int64_t bytes = planes * (block_size / 8);
  Tensor codes = empty(x, {bytes}, ScalarType::Byte), dots = empty(x, {numbers.numel()}, ScalarType::Float);
  std::fill_n(bytes_of(codes), bytes, uint8_t{0});
  float* products = static_cast<float*>(dots.mutable_data_ptr());
  const int64_t tile = cpu::tile_of(block_size);
  share(ceil_divide(input.n, tile), tile, [&](int64_t begin, int64_t end) {
    cpu::eden_encode(input, row_of(numbers, wide, first), table, block_size, static_cast<uint64_t>(seed),
                     static_cast<uint64_t>(offset), bytes_of(codes), products, begin, end);
  });
  return {codes, dots};
}

Tensor eden_decode_sum(const Tensor& codes, const Tensor& scales, const Tensor& widths, const Tensor& begins,
                       const Tensor& centroids, int64_t n, int64_t block_size, const Tensor& seeds, int64_t offset,
                       double scale) {
  STD_TORCH_CHECK(codes.dim() == 2 && codes.scalar_type() == ScalarType::Byte,
                  "eden_decode_sum: codes must be uint8 of 2 dimensions");
  const int64_t count = codes.size(0), bytes = codes.size(1);
  // Rows may be parts of longer payloads: only their own bytes must be next to each other.
  const Tensor rows = bytes <= 1 || codes.stride(1) == 1 ? codes : dense(codes);
  const Tensor numbers = dense(scales), wide = dense(widths), first = dense(begins), keys = dense(seeds);
  check_kind("eden_decode_sum", "seeds", keys, ScalarType::Long, count, codes);
  const int64_t plane = std::max<int64_t>(1, block_size / 8);
  check_blocks_of_widths("eden_decode_sum", numbers, wide, first, centroids, count, n, block_size, bytes / plane,
                         codes);
  const cpu::Centroids table = centroids_of(centroids);
  Tensor out = empty(codes, {n}, ScalarType::Float);
  float* to = static_cast<float*>(out.mutable_data_ptr());
  const int64_t stride = count > 1 ? rows.stride(0) : 0, tile = cpu::tile_of(block_size);
  const float factor = checked_scale(scale);
  share(ceil_divide(n, tile), tile * std::max<int64_t>(1, count), [&](int64_t begin, int64_t end) {
    cpu::eden_decode_sum(const_bytes_of(rows), count, stride, row_of(numbers, wide, first),
                         ceil_divide(n, block_size), table, n, block_size,
                         static_cast<const int64_t*>(keys.const_data_ptr()), static_cast<uint64_t>(offset), factor, to,
                         begin, end);
  });
  return out;
}

}  // namespace

}  // namespace lqray::bind

STABLE_TORCH_LIBRARY_IMPL(lqray, CPU, m) {
  m.impl("eden_encode", TORCH_BOX(&lqray::bind::eden_encode));
  m.impl("eden_decode_sum", TORCH_BOX(&lqray::bind::eden_decode_sum));
}
