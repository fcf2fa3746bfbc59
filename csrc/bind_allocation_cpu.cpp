// The operators of norms and widths of blocks for CPU tensors, through torch's stable ABI.
#include "bind_blocks.h"
#include "bind_cpu.h"
#include "eden.h"

namespace lqray::bind {

namespace {

std::tuple<Tensor, Tensor, Tensor> block_norm_codes(const Tensor& norms, const Tensor& edges, const Tensor& dithers,
                                                    const Tensor& scales, int64_t seed, int64_t offset) {
  const char* op = "block_norm_codes";
  const int64_t blocks = norms.numel();
  check_kind(op, "norms", norms, ScalarType::Float, blocks, norms);
  check_tables(op, edges, dithers, norms);
  check_scales(op, scales, norms);
  const Tensor flat = dense(norms), e = dense(edges), d = dense(dithers), s = dense(scales);
  const float* from = const_numbers_of<float>(flat);
  const NormTables tables{const_numbers_of<int32_t>(e), const_numbers_of<float>(d), const_numbers_of<float>(s)};
  Tensor eighths = empty(norms, {blocks}, ScalarType::Int), drawn = empty(norms, {blocks}, ScalarType::Byte);
  Tensor largest = empty(norms, {1}, ScalarType::Int), codes = empty(norms, {blocks}, ScalarType::Byte);
  Tensor meant = empty(norms, {blocks}, ScalarType::Float);
  int32_t* exponents = numbers_of<int32_t>(eighths);
  share(ceil_divide(blocks, 4), 16, [&](int64_t begin, int64_t end) {
    cpu::norm_eighths(from, blocks, tables, static_cast<uint64_t>(seed), static_cast<uint64_t>(offset), exponents,
                      bytes_of(drawn), 4 * begin, std::min(blocks, 4 * end));
  });
  int32_t most = kNothing;
  for (int64_t i = 0; i < blocks; ++i) most = std::max(most, exponents[i]);
  uint8_t* out = bytes_of(codes);
  share(blocks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      out[i] = static_cast<uint8_t>(norm_code_of(from[i], exponents[i], most));
      numbers_of<float>(meant)[i] = norm_meant(out[i], most, const_bytes_of(drawn)[i], tables.scales);
    }
  });
  numbers_of<int32_t>(largest)[0] = most > kNothing ? most : 0;
  return {largest, codes, meant};
}

Tensor block_norms(const Tensor& codes, const Tensor& largest, const Tensor& scales, const Tensor& seeds,
                   int64_t offset) {
  const char* op = "block_norms";
  check_rows(op, codes);
  const int64_t rows = codes.size(0), blocks = codes.size(1);
  check_of_rows(op, largest, seeds, rows, codes);
  check_scales(op, scales, codes);
  const Tensor bytes = dense(codes), most = dense(largest), s = dense(scales), keys = dense(seeds);
  Tensor out = empty(codes, {rows, blocks}, ScalarType::Float), drawn = empty(codes, {blocks}, ScalarType::Byte);
  for (int64_t row = 0; row < rows; ++row) {
    const uint64_t seed = static_cast<uint64_t>(const_numbers_of<int64_t>(keys)[row]);
    const int32_t exponent = const_numbers_of<int32_t>(most)[row];
    share(ceil_divide(blocks, 4), 16, [&](int64_t begin, int64_t end) {
      const int64_t stop = std::min(blocks, 4 * end);
      cpu::draw_dithers(blocks, seed, static_cast<uint64_t>(offset), bytes_of(drawn), 4 * begin, stop);
      for (int64_t i = 4 * begin; i < stop; ++i)
        numbers_of<float>(out)[row * blocks + i] = norm_meant(
            const_bytes_of(bytes)[row * blocks + i], exponent, const_bytes_of(drawn)[i], const_numbers_of<float>(s));
    });
  }
  return out;
}

std::tuple<Tensor, Tensor> block_widths(const Tensor& codes, const Tensor& order, int64_t planes) {
  const char* op = "block_widths";
  check_rows(op, codes);
  const int64_t rows = codes.size(0), blocks = codes.size(1);
  const int64_t count = checked_order(op, order, planes, blocks, codes);
  const Tensor bytes = dense(codes), steps = dense(order);
  const int64_t* walked = const_numbers_of<int64_t>(steps);
  bool known = true;
  for (int64_t i = 0; i < count; ++i) known = known && walked[i] >= 0 && walked[i] < 256;
  STD_TORCH_CHECK(known, op, ": order holds what is no norm code");
  Tensor widths = empty(codes, {rows, blocks}, ScalarType::Byte), begins = empty(codes, {rows, blocks}, ScalarType::Long);
  for (int64_t row = 0; row < rows; ++row)
    cpu::block_widths(const_bytes_of(bytes) + row * blocks, blocks, walked, count, planes,
                      bytes_of(widths) + row * blocks, numbers_of<int64_t>(begins) + row * blocks);
  return {widths, begins};
}

}  // namespace

}  // namespace lqray::bind

STABLE_TORCH_LIBRARY_IMPL(lqray, CPU, m) {
  m.impl("block_norm_codes", TORCH_BOX(&lqray::bind::block_norm_codes));
  m.impl("block_norms", TORCH_BOX(&lqray::bind::block_norms));
  m.impl("block_widths", TORCH_BOX(&lqray::bind::block_widths));
}
