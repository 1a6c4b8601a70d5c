// Exactness: on every instruction set that this CPU has, integer sums equal the plain definition and outputs equal the
// scalar implementation bit for bit.
#include <string>

#include "reference.h"

namespace {

using test::Case;
using test::Packed;
using test::Random;
using test::random_case;
using test::uniform;

constexpr bd_format kFormats[] = {BD_TERNARY, BD_INT8, BD_INT4, BD_TERNARY_DENSE};

template <typename F>
void for_each_isa(F body) {
  for (const char* const* name = bd_supported_isas(); *name != nullptr; ++name) {
    CHECK_OK(bd_set_isa(*name));
    body(std::string(*name));
  }
}

void check_sums(const Case& made, const Packed& packed, const std::vector<int8_t>& x, int64_t tokens) {
  const std::vector<int32_t> expected = made.accumulate(x, tokens);
  for_each_isa([&](const std::string& isa) {
    std::vector<int32_t> acc(expected.size(), -1);
    CHECK_OK(bd_matmul_int32(packed.data(), packed.size(), x.data(), x.size(), tokens, acc.data(), acc.size()));
    if (acc != expected) {
      std::fprintf(stderr, "%s: format %d, %lld x %lld, %lld tokens, groups of %lld\n", isa.c_str(), made.format,
                   static_cast<long long>(made.rows), static_cast<long long>(made.cols), static_cast<long long>(tokens),
                   static_cast<long long>(made.group_size));
      CHECK(acc == expected);
    }
  });
}

std::vector<float> run_linear(const Case& made, const Packed& packed, const std::vector<float>& x, int64_t tokens,
                              const std::vector<float>& norm, const std::vector<float>& bias) {
  std::vector<float> out(static_cast<size_t>(tokens * made.rows), 12345.0f);
  CHECK_OK(bd_linear(packed.data(), packed.size(), x.data(), x.size(), BD_FLOAT32, tokens,
                     norm.empty() ? nullptr : norm.data(), norm.size(), 1e-6f, bias.empty() ? nullptr : bias.data(),
                     bias.size(), out.data(), out.size()));
  return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) != std::isnan(b[i])) return false;
    if (!std::isnan(a[i]) && std::memcmp(&a[i], &b[i], sizeof(float)) != 0) return false;
  }
  return true;
}

// Outputs from the quantised activations which the library itself reports, in double: close to the floats of each
// instruction set, which must be equal among themselves.
void check_outputs(Random& random, const Case& made, const Packed& packed, const std::vector<float>& x, int64_t tokens,
                   bool with_norm, bool with_bias) {
  std::normal_distribution<float> normal;
  std::vector<float> norm, bias;
  if (with_norm) {
    for (int64_t i = 0; i < made.cols; ++i) norm.push_back(1.0f + 0.1f * normal(random));
  }
  if (with_bias) {
    for (int64_t i = 0; i < made.rows; ++i) bias.push_back(normal(random));
  }
  CHECK_OK(bd_set_isa("scalar"));
  const std::vector<float> scalar = run_linear(made, packed, x, tokens, norm, bias);
  std::vector<int8_t> x_q(x.size());
  std::vector<float> s(static_cast<size_t>(tokens));
  CHECK_OK(bd_quantize_activations(x.data(), x.size(), BD_FLOAT32, tokens, made.cols, with_norm ? norm.data() : nullptr,
                                   norm.size(), 1e-6f, x_q.data(), x_q.size(), s.data(), s.size()));
  const std::vector<int32_t> acc = made.accumulate(x_q, tokens);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = 0; r < made.rows; ++r) {
      double y = 0, size = 0;
      for (int64_t g = 0; g < made.groups; ++g) {
        const double term = double{made.scale_of(r, g)} * acc[static_cast<size_t>((t * made.rows + r) * made.groups + g)];
        y += term;
        size += std::fabs(term);
      }
      y /= s[static_cast<size_t>(t)];
      size /= s[static_cast<size_t>(t)];
      if (with_bias) {
        y += bias[static_cast<size_t>(r)];
        size += std::fabs(bias[static_cast<size_t>(r)]);
      }
      const float got = scalar[static_cast<size_t>(t * made.rows + r)];
      if (std::isnan(s[static_cast<size_t>(t)])) CHECK(std::isnan(got));
      else if (size < 1e38) CHECK(std::fabs(got - y) <= 1e-5 * size + 1e-30);
    }
  }
  for_each_isa([&](const std::string& isa) {
    std::vector<int8_t> again(x.size());
    std::vector<float> s_again(s.size());
    CHECK_OK(bd_quantize_activations(x.data(), x.size(), BD_FLOAT32, tokens, made.cols,
                                     with_norm ? norm.data() : nullptr, norm.size(), 1e-6f, again.data(), again.size(),
                                     s_again.data(), s_again.size()));
    CHECK(again == x_q);
    CHECK(same_bits(s_again, s));
    const std::vector<float> y = run_linear(made, packed, x, tokens, norm, bias);
    if (!same_bits(y, scalar)) {
      std::fprintf(stderr, "%s: format %d, %lld x %lld, %lld tokens\n", isa.c_str(), made.format,
                   static_cast<long long>(made.rows), static_cast<long long>(made.cols), static_cast<long long>(tokens));
      CHECK(same_bits(y, scalar));
    }
  });
}

std::vector<int8_t> random_int8(Random& random, int64_t n) {
  std::vector<int8_t> x(static_cast<size_t>(n));
  for (int8_t& v : x) v = static_cast<int8_t>(random());
  return x;
}

std::vector<float> random_floats(Random& random, int64_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = normal(random);
  return x;
}

// Sizes around every tile, vector, chunk and group boundary.
void test_small_shapes(Random& random) {
  for (const bd_format format : kFormats) {
    for (const int64_t rows : {1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 48, 50}) {
      for (const int64_t cols : {1, 3, 4, 5, 15, 16, 17, 19, 20, 21, 31, 32, 33, 40, 63, 64, 65, 127, 128, 129, 200, 257}) {
        const int kind = static_cast<int>(uniform(random, 0, 3));
        const Case made = random_case(random, format, rows, cols, kind);
        const Packed packed = made.pack();
        const int64_t tokens = uniform(random, 1, 30);
        check_sums(made, packed, random_int8(random, tokens * cols), tokens);
        check_sums(made, packed, random_int8(random, cols), 1);
        check_outputs(random, made, packed, random_floats(random, tokens * cols), tokens, random() % 2 != 0,
                      random() % 2 != 0);
      }
    }
  }
}

void test_every_token_count(Random& random) {
  for (const bd_format format : kFormats) {
    for (const int kind : {0, 1, 2, 3}) {
      const Case made = random_case(random, format, 37, 150, kind);
      const Packed packed = made.pack();
      for (int64_t tokens = 1; tokens <= 70; ++tokens) {
        check_sums(made, packed, random_int8(random, tokens * made.cols), tokens);
      }
      check_outputs(random, made, packed, random_floats(random, 64 * made.cols), 64, true, true);
    }
  }
}

// More tokens than one block of any instruction set has, and more columns than are decoded at once.
void test_blocks_and_spans(Random& random) {
  for (const bd_format format : kFormats) {
    for (const int kind : {0, 1, 3}) {
      if (kind > (format == BD_TERNARY ? 3 : format == BD_INT4 ? 1 : 0)) continue;
      for (const int64_t cols : {530, 1040}) {
        const Case made = random_case(random, format, 19, cols, kind);
        const Packed packed = made.pack();
        for (const int64_t tokens : {17, 130}) check_sums(made, packed, random_int8(random, tokens * cols), tokens);
        check_outputs(random, made, packed, random_floats(random, 17 * cols), 17, false, true);
      }
    }
  }
}

void test_random_shapes(Random& random, int count, int64_t largest) {
  std::uniform_real_distribution<double> exponent(0.0, std::log2(static_cast<double>(largest)));
  for (int i = 0; i < count; ++i) {
    const bd_format format = kFormats[random() % 4];
    const int64_t rows = static_cast<int64_t>(std::exp2(exponent(random)));
    int64_t cols = static_cast<int64_t>(std::exp2(exponent(random)));
    if (i % 8 == 0) cols = largest - i / 8 % 3;
    const int kind = static_cast<int>(uniform(random, 0, 3));
    const Case made = random_case(random, format, rows, cols, kind);
    const Packed packed = made.pack();
    const int64_t tokens = rows * cols > 1000000 ? uniform(random, 1, 3) : uniform(random, 1, 40);
    check_sums(made, packed, random_int8(random, tokens * cols), tokens);
    check_outputs(random, made, packed, random_floats(random, tokens * cols), tokens, random() % 2 != 0, false);
  }
}

// The largest sums: every activation 127 or -128, every weight at one end, so that no accumulator of any width may be
// shorter than its proof says.
void test_extreme_sums(Random& random) {
  for (const bd_format format : kFormats) {
    const int low = format == BD_INT8 ? -127 : format == BD_INT4 ? -8 : -1;
    const int high = format == BD_INT8 ? 127 : format == BD_INT4 ? 7 : 1;
    for (const int64_t cols : {int64_t{256}, int64_t{4095}, int64_t{BD_MAX_COLS}}) {
      for (const int weight : {low, 0, high}) {
        Case made = random_case(random, format, 17, cols, 0);
        std::fill(made.values.begin(), made.values.end(), static_cast<int8_t>(weight));
        const Packed packed = made.pack();
        for (const int activation : {127, -128, 0}) {
          for (const int64_t tokens : {1, 3, 17}) {
            // Many tokens take long: the smallest and the largest sum alone.
            if (tokens > 3 && (cols > 50000 || (cols > 256 && (weight == 0 || activation != -128)))) continue;
            check_sums(made, packed, std::vector<int8_t>(static_cast<size_t>(tokens * cols), static_cast<int8_t>(activation)),
                       tokens);
          }
        }
      }
    }
  }
}

// Sums of unsigned codes that pass 2^31 on the way, of so many tokens that matrix instructions add them.
void test_sums_that_wrap(Random& random) {
  constexpr int64_t kTokens = 16;
  Case made = random_case(random, BD_INT8, 1, BD_MAX_COLS, 0);
  std::fill(made.values.begin(), made.values.end(), int8_t{127});
  const std::vector<int8_t> x(static_cast<size_t>(kTokens * made.cols), int8_t{-128});
  check_sums(made, made.pack(), x, kTokens);
}

void test_not_finite(Random& random) {
  for (const bd_format format : kFormats) {
    const Case made = random_case(random, format, 33, 100, 1);
    const Packed packed = made.pack();
    for (const int64_t tokens : {1, 3, 20}) {
      for (const float bad : {NAN, INFINITY, -INFINITY}) {
        for (const bool with_norm : {false, true}) {
          std::vector<float> x = random_floats(random, tokens * made.cols);
          const int64_t at = uniform(random, 0, tokens - 1);
          const std::vector<float> norm(with_norm ? static_cast<size_t>(made.cols) : 0, 1.0f);
          for_each_isa([&](const std::string&) {
            const std::vector<float> clean = run_linear(made, packed, x, tokens, norm, {});
            std::vector<float> dirty = x;
            dirty[static_cast<size_t>(at * made.cols + 57)] = bad;
            const std::vector<float> y = run_linear(made, packed, dirty, tokens, norm, {});
            for (int64_t t = 0; t < tokens; ++t) {
              for (int64_t r = 0; r < made.rows; ++r) {
                const size_t i = static_cast<size_t>(t * made.rows + r);
                CHECK(t == at ? std::isnan(y[i]) : y[i] == clean[i]);
              }
            }
          });
        }
      }
    }
    // All zero, tiny and huge inputs stay finite.
    for (const float value : {0.0f, 1e-30f, 1e-42f, 3e38f, -3e38f}) {
      const std::vector<float> x(static_cast<size_t>(2 * made.cols), value);
      check_outputs(random, made, packed, x, 2, false, true);
      for (const float y : run_linear(made, packed, x, 2, {}, {})) CHECK(std::isfinite(y) || std::fabs(value) > 1.0f);
    }
  }
}

// Ties round to even, and the scale is 127 * (1 / max).
void test_rounding() {
  for_each_isa([](const std::string&) {
    const float x[] = {127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.5f, 0.49999997f, -127.0f, 3.0f};
    const int8_t expected[] = {127, 0, 2, 2, 0, -2, -2, 126, 0, -127, 3};
    int8_t x_q[11];
    float s;
    CHECK_OK(bd_quantize_activations(x, 11, BD_FLOAT32, 1, 11, nullptr, 0, 0.0f, x_q, 11, &s, 1));
    const volatile float reciprocal = 1.0f / 127.0f;
    CHECK(s == reciprocal * 127.0f);
    if (s == 1.0f) CHECK(std::memcmp(x_q, expected, sizeof x_q) == 0);
    const uint16_t bf16[] = {0x3f80, 0xbf00, 0x0000};  // 1, -0.5, 0
    CHECK_OK(bd_quantize_activations(bf16, 3, BD_BFLOAT16, 1, 3, nullptr, 0, 0.0f, x_q, 3, &s, 1));
    CHECK(s == 127.0f && x_q[0] == 127 && x_q[1] == -64 && x_q[2] == 0);
  });
}

void test_embedding(Random& random) {
  for (const bd_format format : kFormats) {
    for (const int kind : {0, 1, 2}) {
      const Case made = random_case(random, format, 45, 77, kind);
      const Packed packed = made.pack();
      const int64_t index[] = {44, 0, 16, 15, 44};
      std::vector<float> out(5 * 77);
      CHECK_OK(bd_embedding(packed.data(), packed.size(), index, 5, out.data(), out.size()));
      for (size_t i = 0; i < 5; ++i) {
        for (int64_t c = 0; c < 77; ++c) {
          const int64_t group = made.group_size == 0 ? 0 : c / made.group_size;
          const volatile float product =
              static_cast<float>(made.values[static_cast<size_t>(index[i] * 77 + c)]) * made.scale_of(index[i], group);
          CHECK(out[i * 77 + static_cast<size_t>(c)] == product);
        }
      }
    }
  }
}

}  // namespace

// Arguments: seed, number of large random shapes, their largest size.
int main(int argc, char** argv) {
  Random random(argc > 1 ? static_cast<unsigned>(std::atoi(argv[1])) : 1u);
  const int count = argc > 2 ? std::atoi(argv[2]) : 24;
  const int largest = argc > 3 ? std::atoi(argv[3]) : 4096;
  for (const char* const* name = bd_supported_isas(); *name != nullptr; ++name) std::printf("%s ", *name);
  std::printf("\n");
  test_rounding();
  test_small_shapes(random);
  test_every_token_count(random);
  test_blocks_and_spans(random);
  test_extreme_sums(random);
  test_sums_that_wrap(random);
  test_not_finite(random);
  test_embedding(random);
  test_random_shapes(random, count, largest);
  std::printf("kernels: ok\n");
  return 0;
}
