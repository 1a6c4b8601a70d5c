// AMX: tdpbsud multiplies a tile of 16 tokens x 64 signed activations by a tile of 64 unsigned codes x 16 rows and adds into
// 16 x 16 int32 sums, which wrap around 2^32 and are exact like those of vpdpbusd (see avx512_vnni.cpp). A step of a panel
// is a row of the second operand as it is: codes only have to be decoded, not moved. Four tiles of sums, so that four loads
// serve four products. Fewer tokens than a tile has are left to AVX-512.
#include "kernels/kernels.h"

#if defined(__AVX512BW__) && \
    ((defined(__AMX_TILE__) && defined(__AMX_INT8__)) || (defined(__AMXTILE__) && defined(__AMXINT8__)))  // Clang <= 15

#include "kernels/strips.h"
#include "kernels/x86_512.h"

namespace bitdistill {
namespace {

constexpr int kTileTokens = 16;
constexpr int kTileCols = 64;
constexpr int kTileRowBytes = 64;
constexpr int kTileBytes = 16 * kTileRowBytes;

// What ldtilecfg takes: tiles 0 to 3 are sums, 4 and 5 activations, 6 and 7 codes, of `cols` columns.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit constexpr TileConfig(int cols) {
    for (int i = 0; i < 8; ++i) {
      const bool activations = i == 4 || i == 5, codes = i == 6 || i == 7;
      row_bytes[i] = static_cast<uint16_t>(activations ? cols : kTileRowBytes);
      rows[i] = static_cast<uint8_t>(codes ? cols / kStepCols : 16);
    }
  }
};
static_assert(sizeof(TileConfig) == 64, "the size that the instruction reads");

// Configured for the thread while it computes and released after it: a thread that leaves tiles in use makes every switch
// to another one save 8 KB.
class Tiles {
 public:
  explicit Tiles(const TileConfig& config) { _tile_loadconfig(&config); }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// Products of S strips and P panels over `count` tiles of columns. The numbers of tiles are parts of the instructions. Not
// inlined: compilers would unroll the loop for every place of the codes on the stack.
template <int S, int P>
__attribute__((noinline)) void multiply_tiles(const int8_t* x, int64_t strip_bytes, const uint8_t* codes, int64_t count,
                                              int32_t* sums, bool first) {
  constexpr int kSums = kTileTokens * kPanelRows;
  if (first) {
    _tile_zero(0);
    if constexpr (P == 2) _tile_zero(1);
    if constexpr (S == 2) _tile_zero(2);
    if constexpr (S == 2 && P == 2) _tile_zero(3);
  } else {
    _tile_loadd(0, sums, kTileRowBytes);
    if constexpr (P == 2) _tile_loadd(1, sums + kSums, kTileRowBytes);
    if constexpr (S == 2) _tile_loadd(2, sums + 2 * kSums, kTileRowBytes);
    if constexpr (S == 2 && P == 2) _tile_loadd(3, sums + 3 * kSums, kTileRowBytes);
  }
  for (int64_t i = 0; i < count; ++i) {
    _tile_loadd(6, codes, kTileRowBytes);
    _tile_loadd(4, x, kTileCols);
    _tile_dpbsud(0, 4, 6);
    if constexpr (P == 2) {
      _tile_loadd(7, codes + kSpanBytes, kTileRowBytes);
      _tile_dpbsud(1, 4, 7);
    }
    if constexpr (S == 2) {
      _tile_loadd(5, x + strip_bytes, kTileCols);
      _tile_dpbsud(2, 5, 6);
    }
    if constexpr (S == 2 && P == 2) _tile_dpbsud(3, 5, 7);
    codes += kTileBytes;
    x += kTileBytes;
  }
  _tile_stored(0, sums, kTileRowBytes);
  if constexpr (P == 2) _tile_stored(1, sums + kSums, kTileRowBytes);
  if constexpr (S == 2) _tile_stored(2, sums + 2 * kSums, kTileRowBytes);
  if constexpr (S == 2 && P == 2) _tile_stored(3, sums + 3 * kSums, kTileRowBytes);
}

// Tiles of kExtent columns: 64, or the 32 that a scale is for.
template <int kExtent>
struct Amx {
  static constexpr int kTokens = kTileTokens;
  static constexpr int kStrips = 2;
  static constexpr int kPanels = 2;
  static constexpr int kBlock = 128;
  static constexpr int kCols = kTileCols;
  static constexpr int64_t kChunks = kExtent / kChunkCols;

  static int64_t columns_at(int64_t chunk) {
    constexpr int64_t kOfTile = kTileCols / kChunkCols;
    return chunk / kOfTile * kTileBytes + chunk % kOfTile * kChunkCols;
  }

  template <class Codes>
  __attribute__((noinline)) static void decode(const uint8_t* w, int64_t chunks, uint8_t* codes) {
    int64_t chunk = 0;
    for (; chunk < chunks; ++chunk, w += Codes::kChunkBytes, codes += kCodeBytes) {
      const Codes source(w);
#pragma GCC unroll 4
      for (int step = 0; step < kChunkSteps; ++step) _mm512_store_si512(codes + step * kVectorBytes, source.get(step));
    }
    for (; chunk % kChunks != 0; ++chunk, codes += kCodeBytes) memset(codes, 0, kCodeBytes);
  }

  static void multiply(const int8_t* x, int64_t strip_bytes, int tokens, const uint8_t* codes, int panels, int64_t chunks,
                       int32_t* sums, bool first) {
    const int64_t count = div_up(chunks, kChunks);
    if (tokens > kTileTokens) {
      panels == 2 ? multiply_tiles<2, 2>(x, strip_bytes, codes, count, sums, first)
                  : multiply_tiles<2, 1>(x, strip_bytes, codes, count, sums, first);
    } else {
      panels == 2 ? multiply_tiles<1, 2>(x, strip_bytes, codes, count, sums, first)
                  : multiply_tiles<1, 1>(x, strip_bytes, codes, count, sums, first);
    }
  }
};

constexpr TileConfig kWhole(kTileCols), kGroup(kInt4Group);

void multiply(const Tile& tile) {
  const Tiles tiles(tile.format == BD_INT4 ? kGroup : kWhole);
  switch (tile.format) {
    case BD_TERNARY: return multiply_strips<Amx<kTileCols>, TernaryCodes>(tile);
    case BD_INT8: return multiply_strips<Amx<kTileCols>, Int8Codes>(tile);
    case BD_INT4: return multiply_strips<Amx<kInt4Group>, Int4Codes>(tile);
    case BD_TERNARY_DENSE: return;  // (never: it is widened)
  }
}

double multiply_add_loop(int64_t iterations) {
  const Tiles tiles(kWhole);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(6);
  for (int64_t i = 0; i < iterations; ++i) {
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 6);
    _tile_dpbsud(2, 4, 6);
    _tile_dpbsud(3, 4, 6);
  }
  return static_cast<double>(iterations) * 4 * kTileTokens * kTileCols * kPanelRows;
}

constexpr Kernels kAmx = {"amx",
                          Amx<kTileCols>::kBlock,
                          128,
                          quantize_token,
                          multiply,
                          multiply_add_loop,
                          read_loop,
                          avx512_float_kernels,
                          {kTileTokens, kTileCols, 2},
                          kTileTokens,
                          avx512vnni_kernels};

}  // namespace
}  // namespace bitdistill

BITDISTILL_GIVES(amx_kernels, &kAmx)

#else

BITDISTILL_GIVES(amx_kernels, nullptr)

#endif
