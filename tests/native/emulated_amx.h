// The AMX instructions that amx.cpp uses, for CPUs without them: included in front of it, after emulated_vnni.h, by
// BITDISTILL_EMULATE_VNNI. Stricter than the CPU: tiles have to be released before they are configured again, and products
// of tiles must be whole.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulated {

constexpr int kTiles = 8, kTileRows = 16, kTileRowBytes = 64;

struct TileState {
  bool configured;
  uint16_t row_bytes[kTiles];
  uint8_t rows[kTiles];
  uint8_t data[kTiles][kTileRows][kTileRowBytes];
};

inline thread_local TileState tile_state;

inline void tile_check(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "emulated AMX: %s\n", what);
  std::abort();
}

inline void tile_loadconfig(const void* p) {
  uint8_t config[64];
  std::memcpy(config, p, sizeof config);
  TileState& state = tile_state;
  tile_check(!state.configured, "the tiles of the last product were not released");
  tile_check(config[0] == 1 && config[1] == 0, "palette 1 from row 0");
  for (int i = 2; i < 16; ++i) tile_check(config[i] == 0, "reserved bytes are zero");
  for (int i = 0; i < 16; ++i) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, config + 16 + 2 * i, sizeof row_bytes);
    const uint8_t rows = config[48 + i];
    tile_check(i < kTiles ? row_bytes <= kTileRowBytes && rows <= kTileRows && (row_bytes == 0) == (rows == 0)
                          : row_bytes == 0 && rows == 0, "a tile has at most 16 rows of 64 bytes, and there are eight");
    if (i >= kTiles) continue;
    state.row_bytes[i] = row_bytes;
    state.rows[i] = rows;
  }
  std::memset(state.data, 0, sizeof state.data);
  state.configured = true;
}

inline void tile_release() {
  tile_check(tile_state.configured, "released without a configuration");
  tile_state.configured = false;
}

inline TileState& tile_use(int tile) {
  tile_check(tile_state.configured && tile < kTiles && tile_state.rows[tile] != 0, "a tile that is not configured");
  return tile_state;
}

inline void tile_zero(int tile) { std::memset(tile_use(tile).data[tile], 0, sizeof tile_state.data[tile]); }

inline void tile_loadd(int tile, const void* p, int64_t stride) {
  TileState& state = tile_use(tile);
  std::memset(state.data[tile], 0, sizeof state.data[tile]);
  for (int row = 0; row < state.rows[tile]; ++row) {
    std::memcpy(state.data[tile][row], static_cast<const uint8_t*>(p) + row * stride, state.row_bytes[tile]);
  }
}

inline void tile_stored(int tile, void* p, int64_t stride) {
  const TileState& state = tile_use(tile);
  for (int row = 0; row < state.rows[tile]; ++row) {
    std::memcpy(static_cast<uint8_t*>(p) + row * stride, state.data[tile][row], state.row_bytes[tile]);
  }
}

// Signed bytes of `a` times unsigned ones of `b`. Not instrumented: nothing but tiles, whose sizes were checked, is touched,
// and the emulation is slow enough.
__attribute__((no_sanitize("address"), no_sanitize("undefined"))) inline void tile_dpbsud(int sums, int a, int b) {
  TileState& state = tile_use(sums);
  tile_use(a), tile_use(b);
  tile_check(sums != a && sums != b && a != b, "three different tiles");
  tile_check(state.rows[sums] == state.rows[a] && state.row_bytes[sums] == state.row_bytes[b] &&
                 state.row_bytes[a] == 4 * state.rows[b], "sizes of tiles that can be multiplied");
  const int lanes = state.row_bytes[b] / 4;
  for (int m = 0; m < state.rows[a]; ++m) {
    uint32_t row[kTileRowBytes / 4];
    std::memcpy(row, state.data[sums][m], sizeof row);
    for (int k = 0; k < state.rows[b]; ++k) {
      int8_t x[4];
      std::memcpy(x, state.data[a][m] + 4 * k, sizeof x);
      if (x[0] == 0 && x[1] == 0 && x[2] == 0 && x[3] == 0) continue;  // tokens that only fill the tile
      for (int n = 0; n < lanes; ++n) {
        const uint8_t* const u = state.data[b][k] + 4 * n;
        row[n] += static_cast<uint32_t>(x[0] * u[0] + x[1] * u[1] + x[2] * u[2] + x[3] * u[3]);
      }
    }
    std::memcpy(state.data[sums][m], row, sizeof row);
  }
}

}  // namespace emulated

// Macros or functions, depending on the compiler.
#undef _tile_dpbsud
#undef _tile_loadconfig
#undef _tile_loadd
#undef _tile_release
#undef _tile_stored
#undef _tile_zero

#define _tile_dpbsud emulated::tile_dpbsud
#define _tile_loadconfig emulated::tile_loadconfig
#define _tile_loadd emulated::tile_loadd
#define _tile_release emulated::tile_release
#define _tile_stored emulated::tile_stored
#define _tile_zero emulated::tile_zero

#define __AMX_TILE__ 1
#define __AMX_INT8__ 1
