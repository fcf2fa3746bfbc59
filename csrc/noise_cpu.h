// Random words of tiles: the plain bodies. Internal to *_cpu*.cpp.
#pragma once

#include "quantize_cpu_bodies.h"
#include "slopes.h"

namespace lqray::cpu {

namespace {

// The words of a tile's coordinates, in their order.
LQRAY_BODY void words_of_tile(uint64_t tile, uint64_t offset, uint64_t seed, uint32_t (&word)[kTile]) {
  uint32_t random[4][kGroup];
  philox_tile(tile, offset, seed, random);
  for (int m = 0; m < 4; ++m)
    for (int lane = 0; lane < kGroup; ++lane) {
      const uint32_t w = random[m][lane];
      word[2 * m * kGroup + lane] = w;
      word[(2 * m + 1) * kGroup + lane] = (w << 16) | (w >> 16);
    }
}

LQRAY_BODY void noise_of_tile(uint64_t tile, const Noise& noise, uint32_t (&word)[kTile]) {
  words_of_tile(tile, noise.offset, noise.seed, word);
  if (noise.workers == 0) {
    for (int i = 0; i < kTile; ++i) word[i] += noise.phase;
    return;
  }
  uint32_t shared[kTile];
  words_of_tile(tile, noise.offset, noise.shared, shared);
  const uint32_t width = stratum_width(noise.workers);
  for (int i = 0; i < kTile; ++i) word[i] = stratified(shared[i], word[i], noise, width);
}

}  // namespace

}  // namespace lqray::cpu
