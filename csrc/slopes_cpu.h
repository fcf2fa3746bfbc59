// Plain bodies of the kernels of slopes.h, and those written for one instruction set. Internal to slopes_cpu*.cpp.
#pragma once

#include "noise_cpu.h"
#include "quantize_cpu_x86.h"

namespace lqray::cpu {

namespace {

template <typename Reader>
LQRAY_BODY void encode_sloped_body(Reader x, int64_t n, const uint8_t* norms, const Slopes& slopes, int64_t bucket_size,
                                   const Noise& noise, uint8_t* words, int64_t begin, int64_t end) {
  const Levels& levels = slopes.levels;
  const int bits = levels.bits;
  float r[kTile];
  uint32_t random[kTile];
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t start = tile * kTile;
    normalize_tile(x, n, norms, bucket_size, start, r);
    noise_of_tile(static_cast<uint64_t>(tile), noise, random);
    const int groups = groups_in_tile(n, start);
    for (int j = 0; j < groups; ++j) {
      uint8_t code[kGroup];
      for (int lane = 0; lane < kGroup; ++lane) {
        const float value = r[j * kGroup + lane], at = value > 1.0f ? 1.0f : value;
        const int cell = cell_of(levels.inner, bits, at);
        const bool up =
            goes_up(random[j * kGroup + lane], levels.gap[cell], slopes.curve[cell], at - levels.below[cell]);
        code[lane] = static_cast<uint8_t>(cell + up);
      }
      for (int plane = 0; plane < bits; ++plane) {
        uint32_t word = 0;
        for (int byte = 0; byte < kGroup / 8; ++byte)
          word |= gather_bits(load<uint64_t>(code, byte) >> plane) << (8 * byte);
        std::memcpy(words + 4 * ((start / kGroup + j) * bits + plane), &word, 4);
      }
    }
  }
}

// The coordinates of a group, whose words start at `random`; a bucket may end within it.
LQRAY_BODY void decode_sloped_group(const SlopedRows& rows, const Slopes& slopes, int64_t n, int64_t bucket_size,
                                    const uint32_t* random, float scale, float* out, int64_t group) {
  const int bits = slopes.levels.bits;
  const int64_t start = group * kGroup, stop = std::min(n, start + kGroup);
  float sum[kGroup] = {};
  for (int64_t row = 0; row < rows.count; ++row) {
    const uint8_t *norms = rows.payloads + row * rows.stride, *words = norms + rows.norm_bytes;
    const uint32_t phase = static_cast<uint32_t>(rows.phases[row]);
    uint32_t code[kGroup] = {};
    for (int plane = 0; plane < bits; ++plane) {
      const uint32_t word = load<uint32_t>(words, group * bits + plane);
      for (int lane = 0; lane < kGroup; ++lane) code[lane] |= ((word >> lane) & 1u) << plane;
    }
    int64_t i = start;
    for (int64_t bucket = start / bucket_size; i < stop; ++bucket) {
      const float norm = load<float>(norms, bucket);
      const int64_t to = std::min(stop, (bucket + 1) * bucket_size);
      for (; i < to; ++i) {
        const uint32_t c = code[i - start];
        sum[i - start] += norm * sloped(random[i - start] + phase, slopes.levels.value[c], slopes.tilt[c]);
      }
    }
  }
  for (int64_t i = start; i < stop; ++i) out[i] = sum[i - start] * scale;
}

LQRAY_BODY void decode_sloped_body(const SlopedRows& rows, const Slopes& slopes, int64_t n, int64_t bucket_size,
                                   uint64_t seed, uint64_t offset, float scale, float* out, int64_t begin,
                                   int64_t end) {
  uint32_t random[kTile];
  for (int64_t tile = begin; tile < end; ++tile) {
    words_of_tile(static_cast<uint64_t>(tile), offset, seed, random);
    const int groups = groups_in_tile(n, tile * kTile);
    for (int j = 0; j < groups; ++j)
      decode_sloped_group(rows, slopes, n, bucket_size, random + j * kGroup, scale, out, tile * (kTile / kGroup) + j);
  }
}

}  // namespace

#if LQRAY_X86
void encode_sloped_avx2(Input x, const uint8_t* norms, const Slopes& slopes, int64_t bucket_size, const Noise& noise,
                        uint8_t* words, int64_t begin, int64_t end);
void encode_sloped_avx512(Input x, const uint8_t* norms, const Slopes& slopes, int64_t bucket_size, const Noise& noise,
                          uint8_t* words, int64_t begin, int64_t end);
void decode_sloped_avx2(const SlopedRows& rows, const Slopes& slopes, int64_t n, int64_t bucket_size, uint64_t seed,
                        uint64_t offset, float scale, float* out, int64_t begin, int64_t end);
void decode_sloped_avx512(const SlopedRows& rows, const Slopes& slopes, int64_t n, int64_t bucket_size, uint64_t seed,
                          uint64_t offset, float scale, float* out, int64_t begin, int64_t end);
#endif

}  // namespace lqray::cpu
