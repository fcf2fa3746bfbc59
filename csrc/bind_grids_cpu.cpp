// The operators of lqray/ops/grids.py for CPU tensors: checks, memory, threads; the work is grids.h's.
#include <memory>

#include "bind_blocks.h"
#include "bind_cpu.h"
#include "grids.h"

namespace lqray::bind {

namespace {

// What widths and begins say of the codes, which a caller of torch.ops.lqray, or the network, may have made up.
void check_widths(const char* op, const Tensor& norms, const Tensor& widths, const Tensor& begins, int64_t rows,
                  int64_t n, int64_t block_size, int64_t planes) {
  check_coordinates(op, n);
  STD_TORCH_CHECK(block_size >= kLeastBlock && block_size <= kMostBlock &&
                      (block_size & (block_size - 1)) == 0,
                  op, ": block_size is ", block_size, "; allowed: a power of two from 32 to 8192");
  const int64_t blocks = rows * ceil_divide(n, block_size);
  check_kind(op, "norms", norms, ScalarType::Float, blocks, norms);
  check_kind(op, "widths", widths, ScalarType::Byte, blocks, norms);
  check_kind(op, "begins", begins, ScalarType::Long, blocks, norms);
  const uint8_t* width = const_bytes_of(widths);
  const int64_t* first = const_numbers_of<int64_t>(begins);
  bool within = true;
  for (int64_t i = 0; i < blocks; ++i) within = within && lies_within(width[i], first[i], planes);
  STD_TORCH_CHECK(within, op, ": blocks' codes lie outside of the ", planes, " planes that there are");
}

// Nothing for uniform levels.
std::unique_ptr<cpu::GridLevels> levels_of(const char* op, const std::optional<Tensor>& levels,
                                           const std::optional<Tensor>& slopes, const Tensor& beside) {
  STD_TORCH_CHECK(levels.has_value() == slopes.has_value(), op, ": levels and slopes must be given together, or neither");
  if (!levels) return nullptr;
  check_kind(op, "levels", *levels, ScalarType::Float, kCentroids, beside);
  check_kind(op, "slopes", *slopes, ScalarType::Float, kCentroids, beside);
  const Tensor level = dense(*levels), slope = dense(*slopes);
  return std::make_unique<cpu::GridLevels>(cpu::make_grid_levels(floats_of(level), floats_of(slope)));
}

Tensor grid_encode(const Tensor& x, const Tensor& norms, const Tensor& widths, const Tensor& begins,
                   const std::optional<Tensor>& levels, const std::optional<Tensor>& slopes, int64_t planes,
                   int64_t block_size, int64_t seed, int64_t offset, int64_t phase, int64_t shared_seed, int64_t worker,
                   int64_t workers) {
  const char* op = "grid_encode";
  check_input(op, x, block_size);
  STD_TORCH_CHECK(planes >= 0 && planes <= kMaxCoordinates, op, ": planes is ", planes, "; allowed: 0 to 2**48");
  STD_TORCH_CHECK(phase >= 0 && phase >> 32 == 0, op, ": phase is ", phase, "; allowed: an unsigned 32-bit integer");
  STD_TORCH_CHECK(workers >= 1 && workers <= kMaxWorkers && worker >= 0 && worker < workers, op, ": worker ", worker,
                  " of ", workers, "; allowed: 1 to ", kMaxWorkers, " workers, counted from 0");
  const Tensor flat = dense(x), numbers = dense(norms), wide = dense(widths), first = dense(begins);
  const cpu::Input input = input_of(op, flat);
  check_widths(op, numbers, wide, first, 1, input.n, block_size, planes);
  const auto tables = levels_of(op, levels, slopes, norms);
  const int64_t bytes = planes * (block_size / 8);
  Tensor codes = empty(x, {bytes}, ScalarType::Byte);
  std::fill_n(bytes_of(codes), bytes, uint8_t{0});
  const Noise noise{static_cast<uint64_t>(seed),
                    static_cast<uint64_t>(offset),
                    static_cast<uint32_t>(phase),
                    static_cast<uint64_t>(shared_seed),
                    static_cast<uint32_t>(worker),
                    workers == 1 ? 0 : static_cast<uint32_t>(workers)};
  const cpu::BlockRow row{floats_of(numbers), const_bytes_of(wide), const_numbers_of<int64_t>(first)};
  const int64_t coded = ceil_divide(input.n, block_size) * block_size;
  share(ceil_divide(coded, kTile), kTile, [&](int64_t begin, int64_t end) {
    cpu::grid_encode(input, row, tables.get(), block_size, noise, bytes_of(codes), begin, end);
  });
  return codes;
}

Tensor grid_decode_sum(const Tensor& codes, const Tensor& norms, const Tensor& widths, const Tensor& begins,
                       const std::optional<Tensor>& phases, const std::optional<Tensor>& levels,
                       const std::optional<Tensor>& slopes, int64_t n, int64_t block_size, int64_t seed, int64_t offset,
                       double scale) {
  const char* op = "grid_decode_sum";
  STD_TORCH_CHECK(codes.dim() == 2 && codes.scalar_type() == ScalarType::Byte && codes.is_cpu(), op,
                  ": codes must be uint8 of 2 dimensions");
  const int64_t count = codes.size(0), bytes = codes.size(1);
  // Rows may be parts of longer payloads: only their own bytes must be next to each other.
  const Tensor rows = bytes <= 1 || codes.stride(1) == 1 ? codes : dense(codes);
  const Tensor numbers = dense(norms), wide = dense(widths), first = dense(begins);
  const int64_t plane = std::max<int64_t>(1, block_size / 8);
  check_widths(op, numbers, wide, first, count, n, block_size, bytes / plane);
  const auto tables = levels_of(op, levels, slopes, norms);
  STD_TORCH_CHECK(!tables || phases, op, ": levels with slopes need phases");
  if (phases) check_kind(op, "phases", *phases, ScalarType::Int, count, codes);
  const Tensor flat_phases = phases ? dense(*phases) : numbers;
  const cpu::GridRows from{const_bytes_of(rows),
                           count,
                           count > 1 ? rows.stride(0) : 0,
                           {floats_of(numbers), const_bytes_of(wide), const_numbers_of<int64_t>(first)},
                           ceil_divide(n, block_size),
                           phases ? const_numbers_of<int32_t>(flat_phases) : nullptr,
                           tables.get(),
                           static_cast<uint64_t>(seed),
                           static_cast<uint64_t>(offset)};
  Tensor out = empty(codes, {n}, ScalarType::Float);
  float* to = static_cast<float*>(out.mutable_data_ptr());
  const float factor = checked_scale(scale);
  share(ceil_divide(n, kTile), kTile * std::max<int64_t>(1, count), [&](int64_t begin, int64_t end) {
    cpu::grid_decode_sum(from, n, block_size, factor, to, begin, end);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> ceiling_codes(const Tensor& norms, const Tensor& scales) {
  const char* op = "ceiling_codes";
  const int64_t blocks = norms.numel();
  check_kind(op, "norms", norms, ScalarType::Float, blocks, norms);
  check_kind(op, "scales", scales, ScalarType::Float, kNormSteps, norms);
  const Tensor flat = dense(norms), steps = dense(scales);
  const float *from = floats_of(flat), *step = floats_of(steps);
  Tensor eighths = empty(norms, {blocks}, ScalarType::Int), largest = empty(norms, {1}, ScalarType::Int);
  Tensor codes = empty(norms, {blocks}, ScalarType::Byte), meant = empty(norms, {blocks}, ScalarType::Float);
  int32_t* exponents = static_cast<int32_t*>(eighths.mutable_data_ptr());
  share(blocks, 4, [&](int64_t begin, int64_t end) { cpu::ceiling_eighths(from, step, exponents, begin, end); });
  const int32_t most = blocks ? *std::max_element(exponents, exponents + blocks) : kNothing;
  uint8_t* out = bytes_of(codes);
  float table[kNormCodes], *numbers = static_cast<float*>(meant.mutable_data_ptr());
  cpu::ceilings(most > kNothing ? most : 0, step, table);
  share(blocks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      out[i] = static_cast<uint8_t>(norm_code_of(from[i], exponents[i], most));
      numbers[i] = table[out[i]];
    }
  });
  *static_cast<int32_t*>(largest.mutable_data_ptr()) = most > kNothing ? most : 0;
  return {largest, codes, meant};
}

Tensor ceilings(const Tensor& codes, const Tensor& largest, const Tensor& scales) {
  const char* op = "ceilings";
  check_rows(op, codes);
  const int64_t rows = codes.size(0), blocks = codes.size(1);
  check_kind(op, "largest", largest, ScalarType::Int, rows, codes);
  check_kind(op, "scales", scales, ScalarType::Float, kNormSteps, codes);
  const Tensor bytes = dense(codes), most = dense(largest), steps = dense(scales);
  Tensor out = empty(codes, {rows, blocks}, ScalarType::Float);
  float* to = static_cast<float*>(out.mutable_data_ptr());
  for (int64_t row = 0; row < rows; ++row) {
    float meant[kNormCodes];
    cpu::ceilings(const_numbers_of<int32_t>(most)[row], floats_of(steps), meant);
    share(blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = row * blocks + begin; i < row * blocks + end; ++i) to[i] = meant[const_bytes_of(bytes)[i]];
    });
  }
  return out;
}

}  // namespace

}  // namespace lqray::bind

STABLE_TORCH_LIBRARY_IMPL(lqray, CPU, m) {
  m.impl("grid_encode", TORCH_BOX(&lqray::bind::grid_encode));
  m.impl("grid_decode_sum", TORCH_BOX(&lqray::bind::grid_decode_sum));
  m.impl("ceiling_codes", TORCH_BOX(&lqray::bind::ceiling_codes));
  m.impl("ceilings", TORCH_BOX(&lqray::bind::ceilings));
}
