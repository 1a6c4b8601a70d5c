// Five ternary weights in a byte against four, inside the matrix product, with AVX-512 VNNI and VBMI. Compiled and run by
// bench_dense_layout.py; it stands alone, so that a layout can be judged before the library knows it.
//
//     dense_layout COLUMNS ROUNDS MEGABYTES [MEGABYTES ...]
//
// One line of JSON a measurement. Times are the least of interleaved rounds. The loops are those of the library
// (csrc/kernels/avx512_vnni.cpp) without scales: panels of 16 rows, 64 bytes a vector, chunks of 16 columns.
//
// Two bits: a vector is a chunk, field k of its bytes is step k. Dense: four vectors are five chunks. The five digits of
// a byte of vector j are the four steps of chunk j and step j of the fifth chunk. A byte has e in its high two bits and a
// place in a table of 64 in its low six, which tells four digits of the 81 that there can be. For the other 17 the high
// bits are 3, and the low six tell e too. These are chosen so that two of the digits are right in the first table all
// the same: a second lookup, masked, mends the rest.
#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int kVector = 64, kChunk = 16, kTokens = 10, kPanelsOfTask = 16, kPromptBlocks = 52;

// ---- The code --------------------------------------------------------------------------------------------------------

// Digits d0, d1 are bits 4..7 of `first`; d2, d3 are bits 0..3 of both; e is bits 6, 7 of `second`.
uint8_t first_of[kVector], second_of[kVector];
uint8_t byte_of[3][3][3][3][3];  // [d0][d1][d2][d3][e]

void make_code() {
  uint8_t places[3][3][9];
  int next = 0, missing = 0;
  for (int d0 = 0; d0 < 3; ++d0) {
    for (int d1 = 0; d1 < 3; ++d1) {
      // Of nine pairs (d2, d3) at most two have no place: each needs three places of the same d0, d1 for its three e.
      const int without = missing < 17 ? std::min(2, 17 - missing) : 0;
      missing += without;
      const int with = 9 - without;
      for (int pair = 0; pair < with; ++pair) {
        const int place = next++;
        places[d0][d1][pair] = static_cast<uint8_t>(place);
        first_of[place] = static_cast<uint8_t>(d0 << 4 | d1 << 6 | (pair % 3) | (pair / 3) << 2);
        for (int e = 0; e < 3; ++e) byte_of[d0][d1][pair % 3][pair / 3][e] = static_cast<uint8_t>(e << 6 | place);
      }
      for (int pair = with; pair < 9; ++pair) {
        for (int e = 0; e < 3; ++e) {
          const int place = places[d0][d1][(pair - with) * 3 + e];
          second_of[place] = static_cast<uint8_t>((pair % 3) | (pair / 3) << 2 | e << 6);
          byte_of[d0][d1][pair % 3][pair / 3][e] = static_cast<uint8_t>(3 << 6 | place);
        }
      }
    }
  }
}

// ---- Decoding --------------------------------------------------------------------------------------------------------

inline __m512i load(const uint8_t* p) { return _mm512_loadu_si512(p); }

inline __m512i broadcast(const int8_t* x) {
  int32_t bits;
  memcpy(&bits, x, sizeof bits);
  return _mm512_set1_epi32(bits);
}

inline void prefetch(const uint8_t* w) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(w);
  _mm_prefetch(reinterpret_cast<const char*>(address + 16384), _MM_HINT_T1);
  _mm_prefetch(reinterpret_cast<const char*>(address + 2048), _MM_HINT_T0);
}

struct Tables {
  __m512i first = load(first_of), second = load(second_of);
};

struct Digits {
  __m512i first, second;
};

inline Digits decode(__m512i bytes, const Tables& tables) {
  const __mmask64 rare = _mm512_cmpge_epu8_mask(bytes, _mm512_set1_epi8(static_cast<char>(0xc0)));
  const __m512i first = _mm512_permutexvar_epi8(bytes, tables.first);
  // d2, d3 of `first`, e of `bytes`.
  const __m512i common = _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x0f), first, bytes, 0xca);
  return {first, _mm512_mask_permutexvar_epi8(common, rare, bytes, tables.second)};
}

constexpr int kShift[5] = {4, 6, 0, 2, 6};  // of digit k, in `first` (0, 1) or `second`

template <int K>
inline __m512i in_place(const Digits& d) {
  return _mm512_and_si512(K < 2 ? d.first : d.second, _mm512_set1_epi8(static_cast<char>(3 << kShift[K])));
}

template <int K>
inline __m512i code(const Digits& d) {
  const __m512i v = K < 2 ? d.first : d.second;
  return _mm512_and_si512(_mm512_srli_epi16(v, kShift[K]), _mm512_set1_epi8(3));
}

// ---- Few tokens: one panel, a sum for each place of a digit ----------------------------------------------------------

using Sums = __m512i[4];  // 4^k times what they should be

inline void add(__m512i& sum, __m512i codes, const int8_t* x) { sum = _mm512_dpbusd_epi32(sum, codes, broadcast(x)); }

template <int T>
inline void chunk_of_two_bits(const uint8_t* w, const int8_t* x, Sums (&sums)[T]) {
  prefetch(w);
  const __m512i v = load(w);
#pragma GCC unroll 4
  for (int step = 0; step < 4; ++step) {
    const __m512i codes = _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(3 << (2 * step))));
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) add(sums[t][step], codes, x + t * kChunk + step * 4);
  }
}

// Vector J of a group of four; `x` is that of the group's first chunk.
template <int T, int J>
inline void vector_of_dense(const uint8_t* group, const int8_t* x, Sums (&sums)[T], const Tables& tables) {
  const uint8_t* w = group + J * kVector;
  prefetch(w);
  const Digits digits = decode(load(w), tables);
  const int8_t *own = x + J * T * kChunk, *fifth = x + 4 * T * kChunk + J * 4;
  const __m512i codes[5] = {in_place<0>(digits), in_place<1>(digits), in_place<2>(digits), in_place<3>(digits),
                            in_place<4>(digits)};
#pragma GCC unroll 5
  for (int k = 0; k < 5; ++k) {
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) add(sums[t][kShift[k] / 2], codes[k], k < 4 ? own + t * kChunk + k * 4 : fifth + t * kChunk);
  }
}

inline void store(int32_t* out, const Sums& s) {
  _mm512_storeu_si512(out, _mm512_add_epi32(_mm512_add_epi32(s[0], _mm512_srai_epi32(s[1], 2)),
                                            _mm512_add_epi32(_mm512_srai_epi32(s[2], 4), _mm512_srai_epi32(s[3], 6))));
}

// Two sets of sums for one or two tokens, as in the library.
template <int T>
constexpr int kSets = T <= 2 ? 2 : 1;

template <int T>
void finish(Sums (&sums)[kSets<T>][T], int32_t* out) {
  for (int t = 0; t < T; ++t) {
    if (kSets<T> == 2) {
      for (int i = 0; i < 4; ++i) sums[0][t][i] = _mm512_add_epi32(sums[0][t][i], sums[kSets<T> - 1][t][i]);
    }
    store(out + t * 16, sums[0][t]);
  }
}

template <int T>
__attribute__((noinline)) void few_two_bits(const uint8_t* w, const int8_t* x, int chunks, int32_t* out) {
  Sums sums[kSets<T>][T];
  for (auto& set : sums) for (auto& token : set) for (auto& sum : token) sum = _mm512_setzero_si512();
  for (; chunks >= kSets<T>; chunks -= kSets<T>) {
#pragma GCC unroll 2
    for (auto& set : sums) {
      chunk_of_two_bits<T>(w, x, set);
      w += kVector;
      x += T * kChunk;
    }
  }
  if (chunks > 0) chunk_of_two_bits<T>(w, x, sums[0]);
  finish<T>(sums, out);
}

template <int T>
__attribute__((noinline)) void few_dense(const uint8_t* w, const int8_t* x, int chunks, int32_t* out) {
  constexpr int kLast = kSets<T> - 1;
  const Tables tables;
  Sums sums[kSets<T>][T];
  for (auto& set : sums) for (auto& token : set) for (auto& sum : token) sum = _mm512_setzero_si512();
  for (; chunks >= 5; chunks -= 5) {
    vector_of_dense<T, 0>(w, x, sums[0], tables);
    vector_of_dense<T, 1>(w, x, sums[kLast], tables);
    vector_of_dense<T, 2>(w, x, sums[0], tables);
    vector_of_dense<T, 3>(w, x, sums[kLast], tables);
    w += 4 * kVector;
    x += 5 * T * kChunk;
  }
  for (; chunks > 0; --chunks) {  // what is left has two bits
    chunk_of_two_bits<T>(w, x, sums[0]);
    w += kVector;
    x += T * kChunk;
  }
  finish<T>(sums, out);
}

// ---- Many tokens: two panels -----------------------------------------------------------------------------------------

template <int T>
using Pair = __m512i[2][T];

template <int T>
inline void add_pair(Pair<T>& sums, const __m512i (&codes)[2], const int8_t* x) {
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
    const __m512i values = broadcast(x + t * kChunk);
    sums[0][t] = _mm512_dpbusd_epi32(sums[0][t], codes[0], values);
    sums[1][t] = _mm512_dpbusd_epi32(sums[1][t], codes[1], values);
  }
}

template <int T>
inline void pair_of_two_bits(const uint8_t* w, size_t stride, const int8_t* x, Pair<T>& sums) {
  const __m512i v[2] = {load(w), load(w + stride)};
#pragma GCC unroll 4
  for (int step = 0; step < 4; ++step) {
    const __m512i codes[2] = {_mm512_and_si512(_mm512_srli_epi16(v[0], 2 * step), _mm512_set1_epi8(3)),
                              _mm512_and_si512(_mm512_srli_epi16(v[1], 2 * step), _mm512_set1_epi8(3))};
    add_pair<T>(sums, codes, x + step * 4);
  }
}

template <int T>
__attribute__((noinline)) void many_two_bits(const uint8_t* w, size_t stride, const int8_t* x, int chunks, int32_t* out) {
  Pair<T> sums;
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) sums[0][t] = sums[1][t] = _mm512_setzero_si512();
  for (; chunks > 0; --chunks) {
    pair_of_two_bits<T>(w, stride, x, sums);
    w += kVector;
    x += T * kChunk;
  }
  for (int p = 0; p < 2; ++p) for (int t = 0; t < T; ++t) _mm512_storeu_si512(out + (p * T + t) * 16, sums[p][t]);
}

template <int T>
__attribute__((noinline)) void many_dense(const uint8_t* w, size_t stride, const int8_t* x, int chunks, int32_t* out) {
  const Tables tables;
  Pair<T> sums;
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) sums[0][t] = sums[1][t] = _mm512_setzero_si512();
  for (; chunks >= 5; chunks -= 5) {
    const int8_t* fifth = x + 4 * T * kChunk;
    for (int j = 0; j < 4; ++j) {
      const Digits a = decode(load(w), tables), b = decode(load(w + stride), tables);
      add_pair<T>(sums, {code<0>(a), code<0>(b)}, x);
      add_pair<T>(sums, {code<1>(a), code<1>(b)}, x + 4);
      add_pair<T>(sums, {code<2>(a), code<2>(b)}, x + 8);
      add_pair<T>(sums, {code<3>(a), code<3>(b)}, x + 12);
      add_pair<T>(sums, {code<4>(a), code<4>(b)}, fifth + 4 * j);
      w += kVector;
      x += T * kChunk;
    }
    x += T * kChunk;
  }
  for (; chunks > 0; --chunks) {
    pair_of_two_bits<T>(w, stride, x, sums);
    w += kVector;
    x += T * kChunk;
  }
  for (int p = 0; p < 2; ++p) for (int t = 0; t < T; ++t) _mm512_storeu_si512(out + (p * T + t) * 16, sums[p][t]);
}

// A panel to two bits, for all blocks of a prompt.
__attribute__((noinline)) void widen(const uint8_t* w, int chunks, uint8_t* out) {
  const Tables tables;
  for (; chunks >= 5; chunks -= 5) {
    __m512i fifth = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Digits d = decode(load(w), tables);
      const __m512i pairs = _mm512_and_si512(_mm512_srli_epi16(d.first, 4), _mm512_set1_epi8(0x0f));
      const __m512i rest = _mm512_and_si512(_mm512_slli_epi16(d.second, 4), _mm512_set1_epi8(static_cast<char>(0xf0)));
      _mm512_storeu_si512(out, _mm512_or_si512(pairs, rest));
      fifth = _mm512_or_si512(fifth, _mm512_slli_epi16(code<4>(d), static_cast<unsigned>(2 * j)));
      w += kVector;
      out += kVector;
    }
    _mm512_storeu_si512(out, fifth);
    out += kVector;
  }
  memcpy(out, w, static_cast<size_t>(chunks) * kVector);
}

// ---- Measuring -------------------------------------------------------------------------------------------------------

using Few = void (*)(const uint8_t*, const int8_t*, int, int32_t*);
using Many = void (*)(const uint8_t*, size_t, const int8_t*, int, int32_t*);
constexpr Few kFew[2][4] = {{few_two_bits<1>, few_two_bits<2>, few_two_bits<3>, few_two_bits<4>},
                            {few_dense<1>, few_dense<2>, few_dense<3>, few_dense<4>}};
constexpr Many kMany[2][3] = {{many_two_bits<5>, many_two_bits<8>, many_two_bits<10>},
                              {many_dense<5>, many_dense<8>, many_dense<10>}};

uint8_t* allocate(size_t size) {
  void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) abort();
  madvise(p, size, MADV_HUGEPAGE);
  return static_cast<uint8_t*>(p);
}

struct Weights {
  int chunks;
  size_t panels, stride[2];
  uint8_t* data[2];  // of two bits, dense

  Weights(int columns, double megabytes) {
    chunks = (columns + kChunk - 1) / kChunk;
    stride[0] = static_cast<size_t>(chunks) * kVector;
    stride[1] = static_cast<size_t>(chunks / 5 * 4 + chunks % 5) * kVector;
    panels = std::max<size_t>(2 * kPanelsOfTask, static_cast<size_t>(megabytes * 1e6 / static_cast<double>(stride[0])));
    panels = panels / (2 * kPanelsOfTask) * (2 * kPanelsOfTask);
    for (int i = 0; i < 2; ++i) data[i] = allocate(panels * stride[i] + (1 << 16));
    uint32_t state = 1;
    const auto digit = [&] { return static_cast<int>(((state = state * 1664525u + 1013904223u) >> 16) % 3); };
    for (size_t p = 0; p < panels; ++p) {
      uint8_t *two = data[0] + p * stride[0], *dense = data[1] + p * stride[1];
      int c = 0;
      for (; c + 5 <= chunks; c += 5, two += 5 * kVector, dense += 4 * kVector) {
        for (int j = 0; j < 4; ++j) {
          for (int i = 0; i < kVector; ++i) {
            const int d[5] = {digit(), digit(), digit(), digit(), digit()};
            two[j * kVector + i] = static_cast<uint8_t>(d[0] | d[1] << 2 | d[2] << 4 | d[3] << 6);
            two[4 * kVector + i] |= static_cast<uint8_t>(d[4] << (2 * j));
            dense[j * kVector + i] = byte_of[d[0]][d[1]][d[2]][d[3]][d[4]];
          }
        }
      }
      for (; c < chunks; ++c, two += kVector, dense += kVector) {
        for (int i = 0; i < kVector; ++i) {
          two[i] = dense[i] = static_cast<uint8_t>(digit() | digit() << 2 | digit() << 4 | digit() << 6);
        }
      }
    }
  }
  ~Weights() {
    for (int i = 0; i < 2; ++i) munmap(data[i], panels * stride[i] + (1 << 16));
  }

  // `tokens` times panels [first, last); the sums of the last ones are left in `out`.
  void multiply(int form, int tokens, const int8_t* x, size_t first, size_t last, int32_t* out) const {
    if (tokens <= 4) {
      for (size_t p = first; p < last; ++p) kFew[form][tokens - 1](data[form] + p * stride[form], x, chunks, out);
    } else if (tokens <= kTokens) {
      const Many f = kMany[form][tokens == 5 ? 0 : tokens == 8 ? 1 : 2];
      for (size_t p = first; p < last; p += 2) f(data[form] + p * stride[form], stride[form], x, chunks, out);
    } else {  // a prompt
      thread_local std::vector<uint8_t> scratch;
      scratch.resize(kPanelsOfTask * stride[0]);
      for (size_t p = first; p < last; p += kPanelsOfTask) {
        const uint8_t* w = data[0] + p * stride[0];
        if (form == 1) {
          for (size_t i = 0; i < kPanelsOfTask; ++i) widen(data[1] + (p + i) * stride[1], chunks, scratch.data() + i * stride[0]);
          w = scratch.data();
        }
        for (int block = 0; block < kPromptBlocks; ++block) {
          for (size_t i = 0; i < kPanelsOfTask; i += 2) kMany[0][2](w + i * stride[0], stride[0], x, chunks, out);
        }
      }
    }
  }
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double seconds(const Weights& w, int form, int tokens, const int8_t* x, int threads) {
  const auto body = [&](size_t first, size_t last) {
    int32_t out[2 * kTokens * 16];
    w.multiply(form, tokens, x, first, last, out);
    asm volatile("" : : "r"(out) : "memory");
  };
  if (threads == 1) {
    const double start = now();
    body(0, w.panels);
    return now() - start;
  }
  // The other thread waits spinning, so that its start is not measured.
  std::atomic<int> go{0}, done{0};
  std::thread other([&] {
    go.fetch_add(1);
    while (go.load() < 2) {}
    body(w.panels / 2, w.panels);
    done.store(1);
  });
  while (go.load() < 1) {}
  const double start = now();
  go.fetch_add(1);
  body(0, w.panels / 2);
  while (done.load() == 0) {}
  const double time = now() - start;
  other.join();
  return time;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  if (!__builtin_cpu_supports("avx512vnni") || !__builtin_cpu_supports("avx512vbmi")) {
    fprintf(stderr, "this CPU has no AVX-512 VNNI and VBMI\n");
    return 3;
  }
  const int columns = atoi(argv[1]), rounds = atoi(argv[2]);
  make_code();
  constexpr int kBatches[] = {1, 2, 4, 5, 8, 10, kPromptBlocks * kTokens};
  for (int arg = 3; arg < argc; ++arg) {
    const double megabytes = atof(argv[arg]);
    const Weights w(columns, megabytes);
    std::vector<int8_t> x(static_cast<size_t>(w.chunks) * kChunk * kTokens);
    uint32_t state = 7;
    for (int8_t& value : x) value = static_cast<int8_t>((state = state * 1664525u + 1013904223u) >> 24);
    for (int tokens : kBatches) {
      int32_t out[2][2 * kTokens * 16] = {};
      for (int form = 0; form < 2; ++form) w.multiply(form, tokens, x.data(), 0, kPanelsOfTask, out[form]);
      if (memcmp(out[0], out[1], sizeof out[0]) != 0) {
        fprintf(stderr, "the forms differ at %d tokens\n", tokens);
        return 1;
      }
    }
    for (int threads = 1; threads <= std::min(2, static_cast<int>(std::thread::hardware_concurrency())); ++threads) {
      for (int tokens : kBatches) {
        if (tokens > kTokens && megabytes > 20) continue;  // (the same panels many times: memory is not the limit)
        double best[2] = {1e9, 1e9};
        const double start = now();
        // Small matrices more often, but no measurement longer than a few seconds.
        for (int round = 0; round < rounds || (round < 20 * rounds && now() - start < 0.3); ++round) {
          for (int form = 0; form < 2; ++form) best[form] = std::min(best[form], seconds(w, form, tokens, x.data(), threads));
          if (now() - start > 6.0) break;
        }
        printf("{\"megabytes_two_bits\": %.1f, \"threads\": %d, \"tokens\": %d, \"two_bits_ms\": %.4f, \"dense_ms\": %.4f, "
               "\"two_bits_gb_s\": %.1f, \"dense_gb_s\": %.1f, \"speedup\": %.3f}\n",
               static_cast<double>(w.panels * w.stride[0]) / 1e6, threads, tokens, 1e3 * best[0], 1e3 * best[1],
               static_cast<double>(w.panels * w.stride[0]) / best[0] / 1e9,
               static_cast<double>(w.panels * w.stride[1]) / best[1] / 1e9, best[0] / best[1]);
        fflush(stdout);
      }
    }
  }
  return 0;
}
