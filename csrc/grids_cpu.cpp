// Kernels of grids.h: the plain ones, which of them this machine runs, and norms in a byte that no coordinate exceeds.
#include "grids_cpu.h"

#include <limits>

namespace lqray::cpu {

namespace {

struct Plain {
  static LQRAY_BODY void words(uint64_t tile, uint64_t offset, uint64_t seed, uint32_t (&word)[kTile]) {
    words_of_tile(tile, offset, seed, word);
  }
  static LQRAY_BODY void noise(uint64_t tile, const Noise& noise, uint32_t (&word)[kTile]) {
    noise_of_tile(tile, noise, word);
  }
  static LQRAY_BODY void pack(const int32_t* code, int bits, uint8_t* to) {
    uint8_t narrow[kGroup];
    for (int lane = 0; lane < kGroup; ++lane) narrow[lane] = static_cast<uint8_t>(code[lane]);
    pack_body(narrow, 1, bits, to);
  }
  static LQRAY_BODY void unpack(const uint8_t* from, int bits, int32_t* code) {
    uint8_t narrow[kGroup];
    unpack_body(from, 1, bits, narrow);
    for (int lane = 0; lane < kGroup; ++lane) code[lane] = narrow[lane];
  }
  static LQRAY_BODY void look_up(const float* table, int, const int32_t* code, float* found) {
    for (int lane = 0; lane < kGroup; ++lane) found[lane] = table[code[lane]];
  }
  static LQRAY_BODY void search(const float* r, const float* inner, int bits, int32_t* code) {
    for (int lane = 0; lane < kGroup; ++lane) code[lane] = cell_of(inner, bits, r[lane]);
  }
};

constexpr int kBias = 127;
constexpr int kLiftBits = 24;

}  // namespace

GridLevels make_grid_levels(const float* levels, const float* slopes) {
  GridLevels found;
  for (int width = 1; width <= kMostWidth; ++width) {
    const int from = (1 << width) - 2, count = 1 << width;
    for (int i = 0; i < count; ++i) {
      const int at = from + i, cell = from + std::min(i, count - 2);
      found.inner[at] = i < count - 2 ? levels[at + 1] : std::numeric_limits<float>::quiet_NaN();
      found.below[at] = levels[cell];
      found.gap[at] = levels[cell + 1] - levels[cell];
      found.curve[at] = (slopes[cell] - slopes[cell + 1]) * 0.5f;
      found.value[at] = levels[at];
      found.tilt[at] = slopes[at] * kUnit;
    }
  }
  return found;
}

void grid_encode(Input x, BlockRow row, const GridLevels* levels, int64_t block_size, const Noise& noise, uint8_t* codes,
                 int64_t begin, int64_t end) {
#if LQRAY_X86
  if (isa() != Isa::portable)
    return (isa() == Isa::avx512 ? grid_encode_avx512 : grid_encode_avx2)(x, row, levels, block_size, noise, codes,
                                                                          begin, end);
#endif
  with_reader(x, [&](auto reader) {
    grid_encode_body<Plain>(reader, x.n, row, levels, block_size, noise, codes, begin, end);
  });
}

void grid_decode_sum(const GridRows& from, int64_t n, int64_t block_size, float scale, float* out, int64_t begin,
                     int64_t end) {
#if LQRAY_X86
  if (isa() != Isa::portable)
    return (isa() == Isa::avx512 ? grid_decode_sum_avx512 : grid_decode_sum_avx2)(from, n, block_size, scale, out, begin,
                                                                                  end);
#endif
  grid_decode_body<Plain>(from, n, block_size, scale, out, begin, end);
}

void ceiling_eighths(const float* norms, const float* scales, int32_t* eighths, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    const float norm = norms[block];
    if (!(norm > 0.0f)) {  // NaN, too
      eighths[block] = kNothing;
      continue;
    }
    const bool small = norm < std::numeric_limits<float>::min();
    const uint32_t bits = as_bits(small ? norm * static_cast<float>(1 << kLiftBits) : norm);
    const float mantissa = as_float((bits & 0x7fffffu) | 0x3f800000u);
    int32_t step = 0;
    for (int edge = 0; edge < kNormSteps; ++edge) step += scales[edge] < mantissa;
    const int32_t power = static_cast<int32_t>(bits >> 23) - kBias - (small ? kLiftBits : 0);
    eighths[block] = kNormSteps * power + step;
  }
}

void ceilings(int32_t largest, const float* scales, float (&meant)[kNormCodes]) {
  for (int code = 0; code < kNotANumber; ++code)
    meant[code] = std::min(norm_meant(code, largest, scales), std::numeric_limits<float>::max());
  meant[kNotANumber] = norm_meant(kNotANumber, largest, scales);
}

}  // namespace lqray::cpu
