// Bodies of the kernels of grids.h, over what an instruction set has of its own. Internal to grids_cpu*.cpp.
//
// Machine: words(tile, offset, seed, word), noise(tile, noise, word): a tile's random words; pack(code, bits, to), unpack(from,
// bits, code): a group's codes; look_up(table, bits, code, found): entries of 2^bits; search(r, inner, bits, code): cells.
#pragma once

#include "grids.h"
#include "noise_cpu.h"
#include "quantize_cpu_x86.h"

namespace lqray::cpu {

namespace {

// A block as its groups see it. lift, factor: y = (x * lift) * factor.
struct BlockOf {
  int64_t index = -1;
  int width = 0;
  float half = 0.0f;  // (2^width - 1) / 2
  float lift = 1.0f;
  float factor = 0.0f;
};

LQRAY_BODY float half_of(int width) { return static_cast<float>((1 << width) - 1) * 0.5f; }

LQRAY_BODY BlockOf block_of(int64_t index, BlockRow row, bool uniform) {
  BlockOf block;
  block.index = index;
  block.width = row.widths[index];
  block.half = half_of(block.width);
  const Scale scale = scale_of(row.numbers[index]);
  block.lift = scale.lift;
  block.factor = uniform ? scale.inverse * block.half : scale.inverse;
  return block;
}

// Of a group's coordinates (x * lift) * factor, as if zeros were beyond the last coordinate.
template <typename Reader>
LQRAY_BODY void scaled_group(Reader x, int64_t n, int64_t start, const BlockOf& block, float* y) {
  const int64_t stop = std::clamp<int64_t>(n - start, 0, kGroup);
  if (stop == kGroup && block.lift == 1.0f) {
    for (int lane = 0; lane < kGroup; ++lane) y[lane] = x[start + lane] * block.factor;
    return;
  }
  for (int lane = 0; lane < stop; ++lane) y[lane] = (x[start + lane] * block.lift) * block.factor;
  for (int64_t lane = stop; lane < kGroup; ++lane) y[lane] = 0.0f * block.factor;
}

// floor(y + half + u), from 0 to 2^width - 1; NaN has code 0.
LQRAY_BODY void uniform_codes(const float* y, const uint32_t* word, float half, int32_t* code) {
  const float top = half + half;
  for (int lane = 0; lane < kGroup; ++lane) {
    const float raised = (y[lane] + half) + uniform(word[lane]);
    const float above = raised > 0.0f ? raised : 0.0f;
    code[lane] = static_cast<int32_t>(above < top ? above : top);
  }
}

template <typename Machine>
LQRAY_BODY void sloped_codes_of(const float* y, const uint32_t* word, const GridLevels& levels, int width,
                                int32_t* code) {
  const int from = (1 << width) - 2;
  float r[kGroup], below[kGroup], gap[kGroup], curve[kGroup];
  for (int lane = 0; lane < kGroup; ++lane) r[lane] = y[lane] > 1.0f ? 1.0f : y[lane];
  if (width <= 4) {
    for (int lane = 0; lane < kGroup; ++lane) code[lane] = 0;
    for (int level = 0; level < from; ++level)  // 2^width - 2 inner ones
      for (int lane = 0; lane < kGroup; ++lane) code[lane] += r[lane] >= levels.inner[from + level];
  } else {
    Machine::search(r, levels.inner + from, width, code);
  }
  Machine::look_up(levels.below + from, width, code, below);
  Machine::look_up(levels.gap + from, width, code, gap);
  Machine::look_up(levels.curve + from, width, code, curve);
  for (int lane = 0; lane < kGroup; ++lane)
    code[lane] += goes_up(word[lane], gap[lane], curve[lane], r[lane] - below[lane]);
}

template <typename Machine, typename Reader>
LQRAY_BODY void grid_encode_body(Reader x, int64_t n, BlockRow row, const GridLevels* levels, int64_t block_size,
                                 const Noise& noise, uint8_t* codes, int64_t begin, int64_t end) {
  alignas(64) uint32_t random[kTile];
  alignas(64) float y[kGroup];
  alignas(64) int32_t code[kGroup];
  BlockOf block;
  // The last block is padded with zeros, which are encoded as well.
  const int64_t coded = ceil_divide(n, block_size) * block_size;
  for (int64_t tile = begin; tile < end; ++tile) {
    Machine::noise(static_cast<uint64_t>(tile), noise, random);
    const int64_t stop = std::min(coded, (tile + 1) * kTile);
    for (int64_t start = tile * kTile; start < stop; start += kGroup) {
      const int64_t index = start / block_size;
      if (index != block.index) block = block_of(index, row, levels == nullptr);
      if (!block.width) continue;
      scaled_group(x, n, start, block, y);
      const uint32_t* word = random + start % kTile;
      if (levels)
        sloped_codes_of<Machine>(y, word, *levels, block.width, code);
      else
        uniform_codes(y, word, block.half, code);
      const int64_t within = (start - index * block_size) / kGroup;
      Machine::pack(code, block.width, codes + row.begins[index] * (block_size / 8) + 4 * within * block.width);
    }
  }
}

// What codes stand for, over what coordinates were divided by. word: null where the noise is not known.
template <typename Machine>
LQRAY_BODY void grid_values(const int32_t* code, const uint32_t* word, uint32_t phase, const GridLevels* levels,
                            int width, float* value) {
  if (levels) {
    const int from = (1 << width) - 2;
    float tilt[kGroup];
    Machine::look_up(levels->value + from, width, code, value);
    Machine::look_up(levels->tilt + from, width, code, tilt);
    for (int lane = 0; lane < kGroup; ++lane) value[lane] = sloped(word[lane] + phase, value[lane], tilt[lane]);
    return;
  }
  const float half = half_of(width), step = 1.0f / half;
  if (word)
    for (int lane = 0; lane < kGroup; ++lane)
      value[lane] = sloped(word[lane] + phase, static_cast<float>(code[lane]) - half, -kUnit) * step;
  else
    for (int lane = 0; lane < kGroup; ++lane) value[lane] = (static_cast<float>(code[lane]) - half) * step;
}

template <typename Machine>
LQRAY_BODY void grid_decode_body(const GridRows& from, int64_t n, int64_t block_size, float scale, float* out,
                                 int64_t begin, int64_t end) {
  alignas(64) uint32_t random[kTile];
  alignas(64) float value[kGroup], sum[kGroup];
  alignas(64) int32_t code[kGroup];
  for (int64_t tile = begin; tile < end; ++tile) {
    if (from.phases) Machine::words(static_cast<uint64_t>(tile), from.offset, from.seed, random);
    const int64_t stop = std::min(n, (tile + 1) * kTile);
    for (int64_t start = tile * kTile; start < stop; start += kGroup) {
      const int64_t index = start / block_size, within = (start - index * block_size) / kGroup;
      const uint32_t* word = from.phases ? random + start % kTile : nullptr;
      for (int lane = 0; lane < kGroup; ++lane) sum[lane] = 0.0f;
      for (int64_t row = 0; row < from.count; ++row) {
        const int64_t block = row * from.blocks + index;
        const int width = from.rows.widths[block];
        if (!width) continue;
        const uint8_t* planes = from.codes + row * from.stride + from.rows.begins[block] * (block_size / 8);
        Machine::unpack(planes + 4 * within * width, width, code);
        const uint32_t phase = from.phases ? static_cast<uint32_t>(from.phases[row]) : 0;
        grid_values<Machine>(code, word, phase, from.levels, width, value);
        const float norm = from.rows.numbers[block];
        for (int lane = 0; lane < kGroup; ++lane) sum[lane] += norm * value[lane];
      }
      const int64_t held = std::min<int64_t>(kGroup, n - start);
      if (held == kGroup)
        for (int lane = 0; lane < kGroup; ++lane) out[start + lane] = sum[lane] * scale;
      else
        for (int64_t lane = 0; lane < held; ++lane) out[start + lane] = sum[lane] * scale;
    }
  }
}

}  // namespace

#if LQRAY_X86
void grid_encode_avx2(Input x, BlockRow row, const GridLevels* levels, int64_t block_size, const Noise& noise,
                      uint8_t* codes, int64_t begin, int64_t end);
void grid_encode_avx512(Input x, BlockRow row, const GridLevels* levels, int64_t block_size, const Noise& noise,
                        uint8_t* codes, int64_t begin, int64_t end);
void grid_decode_sum_avx2(const GridRows& from, int64_t n, int64_t block_size, float scale, float* out, int64_t begin,
                          int64_t end);
void grid_decode_sum_avx512(const GridRows& from, int64_t n, int64_t block_size, float scale, float* out, int64_t begin,
                            int64_t end);
#endif

}  // namespace lqray::cpu
