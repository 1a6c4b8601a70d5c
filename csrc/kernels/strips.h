// The product of some panels and a block of tokens by matrix instructions, which multiply a strip of tokens by the rows of
// a panel. These want the codes of a panel one by one in memory, so a span of columns is decoded there once for all tokens
// of the block; spans are short enough that codes and activations stay in the first-level cache. Everything but the
// instructions themselves is here.
//
// A Machine has
//   kTokens     tokens of a strip
//   kStrips     strips that it multiplies at once
//   kPanels     panels that it multiplies at once
//   kBlock      the most tokens of a block
//   kCols       columns of a chunk of activations, see Strips
//   decode<Codes>(panel, chunks, codes)  the codes of some chunks of 16 columns of one panel, 256 bytes a chunk, and zeros
//                                        up to the end of the chunk of activations
//   columns_at(chunk)  where the 16 columns of a chunk begin in a strip
//   multiply(x, strip_bytes, tokens, codes, panels, chunks, sums, first)
//                                        sums [kStrips][kPanels][kTokens][16] of chunks; not `first`: added to what is there
#pragma once

#include "kernels/portable.h"

namespace bitdistill {
namespace {

constexpr int64_t kSpanChunks = 32;
constexpr int64_t kCodeBytes = kChunkCols * kPanelRows;
constexpr int64_t kSpanBytes = kSpanChunks * kCodeBytes;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class Machine>
struct StripTile {
  static constexpr int kTokens = Machine::kTokens * Machine::kStrips;
  static constexpr int kSums = kTokens * Machine::kPanels * kPanelRows;
  static_assert(Machine::kBlock % kTokens == 0, "a block is whole tiles");
};

// Sums of one group to floats, and after the last group to outputs. totals [kTokens][kPanels][16].
template <class Machine>
inline void finish_strips(const Tile& tile, int panel, int panels, int token, int tokens, int64_t group, const int32_t* sums,
                          float* totals) {
  for (int p = 0; p < panels; ++p) {
    const Floats scale = load_scales(tile, panel + p, group);
    for (int t = 0; t < tokens; ++t) {
      const int strip = t / Machine::kTokens;
      const int at = (strip * Machine::kPanels + p) * Machine::kTokens + t % Machine::kTokens;
      const Bits sum = load_vector<Bits>(sums + at * kPanelRows) + static_cast<uint32_t>(start_sum(tile, token + t, group));
      float* const kept = totals + (t * Machine::kPanels + p) * kPanelRows;
      Floats total = {};
      if (group > 0) total = load_vector<Floats>(kept);
      finish_group(tile, panel + p, token + t, group, load_vector<Ints>(&sum), scale, &total);
      if (group + 1 == tile.groups) {
        finish_output(tile, panel + p, token + t, total);
      } else {
        store_vector(kept, total);
      }
    }
  }
}

template <class Machine, class Codes>
void multiply_strips(const Tile& tile) {
  using Part = StripTile<Machine>;
  constexpr int kParts = Machine::kBlock / Part::kTokens;
  alignas(64) uint8_t codes[Machine::kPanels * kSpanBytes];
  alignas(64) int32_t sums[kParts * Part::kSums];
  alignas(64) float totals[kParts * Part::kSums];
  const int64_t strip_bytes = round_up(tile.chunks * kChunkCols, Machine::kCols) * Machine::kTokens;
  for (int panel = 0; panel < tile.panels; panel += Machine::kPanels) {
    const int panels = static_cast<int>(smaller(Machine::kPanels, tile.panels - panel));
    const uint8_t* w = tile.weights + panel * tile.panel_bytes;
    const int8_t* x = tile.x;
    for (int64_t group = 0; group < tile.groups; ++group) {
      const int64_t chunks = chunks_of_group(tile, group);
      // The sums of a group that is one span are finished at once: all in the same place, which stays in the cache.
      const int sums_step = chunks > kSpanChunks ? Part::kSums : 0;
      for (int64_t chunk = 0; chunk < chunks; chunk += kSpanChunks) {
        const int64_t span = smaller(kSpanChunks, chunks - chunk);
        for (int p = 0; p < panels; ++p) {
          Machine::template decode<Codes>(w + p * tile.panel_bytes, span, codes + p * kSpanBytes);
        }
        asm volatile("" : : : "memory");  // instructions that compilers do not know to read memory are about to read it
        for (int part = 0; part * Part::kTokens < tile.tokens; ++part) {
          const int token = part * Part::kTokens;
          const int tokens = static_cast<int>(smaller(Part::kTokens, tile.tokens - token));
          int32_t* const own = sums + part * sums_step;
          Machine::multiply(x + part * Machine::kStrips * strip_bytes, strip_bytes, tokens, codes, panels, span, own,
                            chunk == 0);
          if (chunk + span == chunks) {
            finish_strips<Machine>(tile, panel, panels, token, tokens, group, own, totals + part * Part::kSums);
          }
        }
        w += span * Codes::kChunkBytes;
        x = tile.x + Machine::columns_at(group * tile.group_chunks + chunk + span);
      }
    }
  }
}

}  // namespace
}  // namespace bitdistill
