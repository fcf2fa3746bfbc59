// The plain bodies of the CPU kernels: C++ that compilers vectorize for the instruction set of the function that they
// are inlined into. Internal to quantize_cpu*.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "quantize_cpu.h"

#define LQRAY_BODY inline __attribute__((always_inline))

namespace lqray::cpu {

namespace {

constexpr int kWideLanes = 16;  // partial sums in float64, the same on every machine

template <typename T>
LQRAY_BODY T load(const uint8_t* bytes, int64_t index) {
  T value;
  std::memcpy(&value, bytes + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// The lowest bits of eight bytes, the first byte's lowest; little-endian, as all that travels.
LQRAY_BODY uint32_t gather_bits(uint64_t eight) {
  return static_cast<uint32_t>(((eight & 0x0101010101010101u) * 0x0102040810204080u) >> 56);
}

// Groups of codes as bit planes.
LQRAY_BODY void pack_body(const uint8_t* codes, int64_t groups, int bits, uint8_t* words) {
  for (int64_t group = 0; group < groups; ++group)
    for (int plane = 0; plane < bits; ++plane) {
      uint32_t word = 0;
      for (int byte = 0; byte < kGroup / 8; ++byte)
        word |= gather_bits(load<uint64_t>(codes, group * (kGroup / 8) + byte) >> plane) << (8 * byte);
      std::memcpy(words + 4 * (group * bits + plane), &word, 4);
    }
}

// The inverse: each bit of a byte becomes a byte's lowest, eight at a time.
LQRAY_BODY void unpack_body(const uint8_t* words, int64_t groups, int bits, uint8_t* codes) {
  for (int64_t group = 0; group < groups; ++group)
    for (int byte = 0; byte < kGroup / 8; ++byte) {
      uint64_t eight = 0;
      for (int plane = 0; plane < bits; ++plane) {
        const uint64_t own = words[4 * (group * bits + plane) + byte] * 0x0101010101010101u & 0x8040201008040201u;
        eight |= ((own + 0x7F7F7F7F7F7F7F7Fu) & 0x8080808080808080u) >> 7 << plane;
      }
      std::memcpy(codes + group * kGroup + 8 * byte, &eight, 8);
    }
}

struct Float32 {
  const float* p;
  LQRAY_BODY float operator[](int64_t i) const { return p[i]; }
};
struct Float16 {
  const uint16_t* p;
  LQRAY_BODY float operator[](int64_t i) const { return as_float(half_bits(p[i])); }
};
struct Bfloat16 {
  const uint16_t* p;
  LQRAY_BODY float operator[](int64_t i) const { return as_float(static_cast<uint32_t>(p[i]) << 16); }
};

template <typename F>
LQRAY_BODY void with_reader(Input x, F&& f) {
  switch (x.dtype) {
    case Dtype::f32:
      return f(Float32{static_cast<const float*>(x.data)});
    case Dtype::f16:
      return f(Float16{static_cast<const uint16_t*>(x.data)});
    case Dtype::bf16:
      return f(Bfloat16{static_cast<const uint16_t*>(x.data)});
  }
}

// Sum of f over [begin, end), in an order that is the same on every machine.
template <typename T, int lanes, typename F>
LQRAY_BODY T sum_of(int64_t begin, int64_t end, F f) {
  T sum[lanes] = {};
  int64_t i = begin;
  for (; i + lanes <= end; i += lanes)
    for (int lane = 0; lane < lanes; ++lane) sum[lane] += f(i + lane);
  for (int lane = 0; i < end; ++i, ++lane) sum[lane] += f(i);
  for (int width = lanes / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) sum[lane] += sum[lane + width];
  return sum[0];
}

// Sum of f in float32 as docs/wire-format.md has it: chunks of kSumChunk; above them, chunks of their sums.
template <int depth, typename F>
LQRAY_BODY float blocked(int64_t begin, int64_t end, F f) {
  if constexpr (depth == 0) {
    return sum_of<float, kSumLanes>(begin, end, f);
  } else {
    constexpr int64_t span = depth == 1 ? kSumChunk : int64_t{kSumChunk} * kSumChunk;
    float sums[kSumChunk];
    int count = 0;
    for (int64_t from = begin; from < end; from += span)
      sums[count++] = blocked<depth - 1>(from, std::min(end, from + span), f);
    const auto sum = [&](int64_t i) __attribute__((always_inline)) { return sums[i]; };
    return count == 1 ? sums[0] : sum_of<float, kSumLanes>(0, count, sum);
  }
}

template <typename Reader>
LQRAY_BODY float squares_of(Reader x, int64_t begin, int64_t end, float scale) {
  static_assert(int64_t{kSumChunk} * kSumChunk * kSumChunk >= kMaxBucket, "three depths are enough");
  return blocked<2>(begin, end, [&](int64_t i) __attribute__((always_inline)) {
    const float value = x[i] * scale;
    return value * value;
  });
}

template <typename Reader>
LQRAY_BODY double wide_squares_of(Reader x, int64_t begin, int64_t end) {
  return sum_of<double, kWideLanes>(begin, end, [&](int64_t i) __attribute__((always_inline)) {
    const double value = x[i];
    return value * value;
  });
}

// Largest magnitude; as integers, so that NaN, the largest of all bit patterns, wins.
template <typename Reader>
LQRAY_BODY float largest_of(Reader x, int64_t begin, int64_t end) {
  uint32_t most = 0;
  for (int64_t i = begin; i < end; ++i) {
    const uint32_t bits = as_bits(x[i]) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  return as_float(most);
}

template <typename Reader>
LQRAY_BODY float l2_norm_of(Reader x, int64_t begin, int64_t end) {
  const float squares = squares_of(x, begin, end, 1.0f);
  if (squares_suffice(squares)) return root_of(squares, 1.0f);
  const Rescaling powers = rescaling_of(largest_of(x, begin, end));
  return root_of(squares_of(x, begin, end, powers.down), powers.up);
}

template <typename Reader>
LQRAY_BODY void norms_body(Reader x, int64_t n, int64_t bucket_size, NormOf norm, uint8_t* norms, int64_t begin,
                           int64_t end) {
  for (int64_t bucket = begin; bucket < end; ++bucket) {
    const int64_t from = bucket * bucket_size, to = std::min(n, from + bucket_size);
    float kept = norm.kind == Norm::l2 ? l2_norm_of(x, from, to) : finite_or_nan(largest_of(x, from, to));
    if (to - from < bucket_size) kept = finite_or_nan(kept * norm.of_short);
    std::memcpy(norms + 4 * bucket, &kept, 4);
  }
}

template <typename Reader>
LQRAY_BODY void statistics_body(Reader x, int64_t n, int64_t bucket_size, NormOf norm, double* norms, double* means,
                                double* sigmas, int64_t begin, int64_t end) {
  for (int64_t bucket = begin; bucket < end; ++bucket) {
    const int64_t from = bucket * bucket_size, to = std::min(n, from + bucket_size);
    const double count = static_cast<double>(to - from);
    // Three short loops, the later ones over a bucket that is in the cache, are faster than one that does it all.
    const double squares = wide_squares_of(x, from, to);
    const auto wide = [&](int64_t i) __attribute__((always_inline)) { return static_cast<double>(x[i]); };
    const double sum = sum_of<double, kWideLanes>(from, to, wide);
    float value = norm.kind == Norm::l2 ? static_cast<float>(std::sqrt(squares)) : largest_of(x, from, to);
    if (to - from < bucket_size) value *= norm.of_short;
    const double size = std::isfinite(squares) ? finite_or_nan(value) : std::numeric_limits<double>::quiet_NaN();
    const double mean = sum / count;
    double deviations = std::max(0.0, squares - sum * mean);
    if (deviations < 1e-9 * squares)  // the difference cancels
      deviations = sum_of<double, kWideLanes>(from, to, [&](int64_t i) __attribute__((always_inline)) {
        return (x[i] - mean) * (x[i] - mean);
      });
    const double divisor = size == 0.0 ? 1.0 : size;
    norms[bucket] = size;
    means[bucket] = mean / divisor;
    sigmas[bucket] = std::sqrt(deviations / std::max(1.0, count - 1.0)) / divisor;
  }
}

// The 32 Philox calls of a tile, or of a tile of signs, a round for all of them at a time: simple loops, which
// compilers vectorize.
LQRAY_BODY void philox_tile(uint64_t tile, uint64_t offset, uint64_t seed, uint32_t (&word)[4][kGroup]) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int lane = 0; lane < kGroup; ++lane) {
    const uint64_t call = tile * kGroup + lane;
    word[0][lane] = static_cast<uint32_t>(call);
    word[1][lane] = static_cast<uint32_t>(call >> 32);
    word[2][lane] = static_cast<uint32_t>(offset);
    word[3][lane] = static_cast<uint32_t>(offset >> 32);
  }
  for (int round = 0; round < 10; ++round) {
    for (int lane = 0; lane < kGroup; ++lane) {
      const uint64_t p0 = static_cast<uint64_t>(word[0][lane]) * 0xD2511F53u;
      const uint64_t p1 = static_cast<uint64_t>(word[2][lane]) * 0xCD9E8D57u;
      word[0][lane] = static_cast<uint32_t>(p1 >> 32) ^ word[1][lane] ^ k0;
      word[1][lane] = static_cast<uint32_t>(p1);
      word[2][lane] = static_cast<uint32_t>(p0 >> 32) ^ word[3][lane] ^ k1;
      word[3][lane] = static_cast<uint32_t>(p0);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// r of a tile's coordinates, whose buckets may end within it; beyond the last coordinate a number of code 0.
template <typename Reader>
LQRAY_BODY void normalize_tile(Reader x, int64_t n, const uint8_t* norms, int64_t bucket_size, int64_t start,
                               float* r) {
  const int64_t stop = std::min(n, start + kTile);
  int64_t i = start;
  for (int64_t bucket = start / bucket_size; i < stop; ++bucket) {
    const Scale scale = scale_of(load<float>(norms, bucket));
    const int64_t to = std::min(stop, (bucket + 1) * bucket_size);
    if (scale.lift == 1.0f)
      for (; i < to; ++i) r[i - start] = x[i] * scale.inverse;
    else
      for (; i < to; ++i) r[i - start] = (x[i] * scale.lift) * scale.inverse;
  }
  for (; i < start + kTile; ++i) r[i - start] = -2.0f;
}

// The words of a tile's groups that hold coordinates.
LQRAY_BODY int groups_in_tile(int64_t n, int64_t start) {
  return static_cast<int>(std::min<int64_t>(kTile / kGroup, (n - start + kGroup - 1) / kGroup));
}

template <typename Reader>
LQRAY_BODY void encode_body(Reader x, int64_t n, const uint8_t* norms, const Levels& levels, int64_t bucket_size,
                            uint64_t seed, uint64_t offset, uint8_t* words, int64_t begin, int64_t end) {
  const int bits = levels.bits, inner = levels.count - 2;
  float r[kTile];
  uint32_t random[4][kGroup];
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t start = tile * kTile;
    normalize_tile(x, n, norms, bucket_size, start, r);
    philox_tile(static_cast<uint64_t>(tile), offset, seed, random);
    const int groups = groups_in_tile(n, start);
    for (int j = 0; j < groups; ++j) {
      int32_t code[kGroup];
      float below[kGroup], gap[kGroup];
      const float* at = r + j * kGroup;
      if (levels.count <= 32) {
        for (int lane = 0; lane < kGroup; ++lane) {
          code[lane] = 0;
          below[lane] = levels.below[0];
          gap[lane] = levels.gap[0];
        }
        for (int level = 0; level < inner; ++level)
          for (int lane = 0; lane < kGroup; ++lane) {
            const bool above = at[lane] >= levels.inner[level];
            code[lane] += above;
            below[lane] = above ? levels.below[level + 1] : below[lane];
            gap[lane] = above ? levels.gap[level + 1] : gap[lane];
          }
      } else {
        for (int lane = 0; lane < kGroup; ++lane) {
          code[lane] = cell_of(levels.inner, bits, at[lane]);
          below[lane] = levels.below[code[lane]];
          gap[lane] = levels.gap[code[lane]];
        }
      }
      const int turn = (j & 1) ? 16 : 0;
      for (int lane = 0; lane < kGroup; ++lane) {
        const uint32_t w = random[j >> 1][lane];
        const float u = uniform(turn ? (w << 16) | (w >> 16) : w);
        code[lane] += u * gap[lane] < at[lane] - below[lane];
      }
      uint8_t narrow[kGroup];
      for (int lane = 0; lane < kGroup; ++lane) narrow[lane] = static_cast<uint8_t>(code[lane]);
      pack_body(narrow, 1, bits, words + 4 * (start / kGroup + j) * bits);
    }
  }
}

// norm * level of the coordinates of a group, added to `sum`.
template <bool add>
LQRAY_BODY void decode_group(Codes payload, const Levels& levels, int64_t n, int64_t bucket_size, int64_t group,
                             float* sum) {
  const int bits = levels.bits;
  uint32_t code[kGroup] = {};
  for (int plane = 0; plane < bits; ++plane) {
    const uint32_t word = load<uint32_t>(payload.words, group * bits + plane);
    for (int lane = 0; lane < kGroup; ++lane) code[lane] |= ((word >> lane) & 1u) << plane;
  }
  const int64_t start = group * kGroup, stop = std::min(n, start + kGroup);
  int64_t i = start;
  for (int64_t bucket = start / bucket_size; i < stop; ++bucket) {
    const float norm = load<float>(payload.norms, bucket);
    const int64_t to = std::min(stop, (bucket + 1) * bucket_size);
    for (; i < to; ++i) {
      const float value = norm * levels.value[code[i - start]];
      sum[i - start] = add ? sum[i - start] + value : value;
    }
  }
}

LQRAY_BODY void decode_body(Codes payload, const Levels& levels, int64_t n, int64_t bucket_size, float* out,
                            int64_t begin, int64_t end) {
  for (int64_t group = begin; group < end; ++group)
    decode_group<false>(payload, levels, n, bucket_size, group, out + group * kGroup);
}

LQRAY_BODY void decode_sum_body(const uint8_t* payloads, int64_t count, int64_t stride, int64_t norm_bytes,
                                const Levels& levels, int64_t n, int64_t bucket_size, float scale, const float* add,
                                float* out, int64_t begin, int64_t end) {
  for (int64_t group = begin; group < end; ++group) {
    float sum[kGroup] = {};
    for (int64_t row = 0; row < count; ++row) {
      const uint8_t* bytes = payloads + row * stride;
      decode_group<true>(Codes{bytes, bytes + norm_bytes}, levels, n, bucket_size, group, sum);
    }
    const int64_t start = group * kGroup, stop = std::min(n, start + kGroup);
    if (add)
      for (int64_t i = start; i < stop; ++i) out[i] = add[i] + sum[i - start] * scale;
    else
      for (int64_t i = start; i < stop; ++i) out[i] = sum[i - start] * scale;
  }
}

// x, and zeros beyond its end, times random signs.
template <typename Reader>
LQRAY_BODY void signs_body(Reader x, int64_t held, int64_t n, uint64_t seed, uint64_t offset, float* out, int64_t begin,
                           int64_t end) {
  uint32_t random[4][kGroup];
  for (int64_t tile = begin; tile < end; ++tile) {
    philox_tile(static_cast<uint64_t>(tile), offset, seed, random);
    const int64_t stop = std::min(n, (tile + 1) * kSignTile);
    for (int64_t start = tile * kSignTile; start < stop; start += kGroup) {
      const int row = static_cast<int>(start % kSignTile) / kGroup, up = 31 - row % 32;
      const uint32_t* word = random[row / 32];
      const int size = static_cast<int>(std::min<int64_t>(kGroup, stop - start));
      const int within = static_cast<int>(std::clamp<int64_t>(held - start, 0, size));
      for (int i = 0; i < within; ++i)
        out[start + i] = as_float(as_bits(x[start + i]) ^ ((word[i] << up) & 0x80000000u));
      for (int i = within; i < size; ++i) out[start + i] = as_float((word[i] << up) & 0x80000000u);
    }
  }
}

LQRAY_BODY void hadamard_body(float* x, int64_t block_size, int64_t begin, int64_t end) {
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(block_size)));
  for (int64_t block = begin; block < end; ++block) {
    float* v = x + block * block_size;
    for (int64_t half = 1; half < block_size; half *= 2)
      for (int64_t pair = 0; pair < block_size; pair += 2 * half)
        for (int64_t i = pair; i < pair + half; ++i) butterfly(v[i], v[i + half]);
    for (int64_t i = 0; i < block_size; ++i) v[i] *= scale;
  }
}

}  // namespace

}  // namespace lqray::cpu
